"""Signal propagation: Eq. 9 and 13 against loops, the paper's numbers, and random networks."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from analysis.propagation.measure import measure, pools
from analysis.propagation.page import NOT_RUN, Claim, claims, disagreement, write_page
from analysis.propagation.study import (
    INIT_NAMES,
    Network,
    Results,
    Settings,
    evaluate,
    measure_all,
    read_signals,
)
from analysis.propagation.theory import (
    BACKWARD,
    FORWARD,
    Conv,
    Floats,
    borders,
    conv_table,
    predict,
)
from common.errors import UserError
from common.style import series
from configs.schema import StageConfig, TrainConfig
from scripts.reproduce import main as reproduce
from tests.conftest import composed, run_program

# VGG model B of [25], typed by hand: (kernel, channels, filters).
VGG_B = [(3, 3, 64), (3, 64, 64), (3, 64, 128), (3, 128, 128), (3, 128, 256), (3, 256, 256)]
VGG_B += [(3, 256, 512), (3, 512, 512), (3, 512, 512), (3, 512, 512)]


def network_of(*stages: StageConfig, act: str = "relu", init: str = "he") -> TrainConfig:
    config: TrainConfig = composed(f"act={act}", f"init={init}")
    return replace(config, model=replace(config.model, stages=list(stages), extra_convs=0))


def stage(**keys: Any) -> StageConfig:
    return replace(StageConfig(filters=128, convs=4), **keys)


def with_stds(table: list[Conv], stds: Floats) -> list[Conv]:
    return [replace(conv, std=std) for conv, std in zip(table, stds, strict=True)]


def sizes(table: list[Conv]) -> list[tuple[int, int, int]]:
    """(kernel, channels, filters) of each convolution."""
    layers = [conv.layer for conv in table]
    return [(layer.kernel, layer.in_channels, layer.out_channels) for layer in layers]


def standard_error(values: Floats) -> Floats:
    """Of the mean over seeds, [seeds, L] -> [L]."""
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))


@pytest.fixture(scope="module")
def results() -> Results:
    """All four initialisations on two networks; crops so small that borders matter."""
    return evaluate(measure_all(Settings(("small14", "vgg_b"), crop=64, batch=1, seeds=2)))


def test_layers_match_the_paper() -> None:
    assert sizes(conv_table(composed("model=vgg_b"))) == VGG_B
    table = conv_table(composed("model=small30"))
    assert sizes(table) == (
        [(7, 3, 64), (2, 64, 128), *[(2, 128, 128)] * 3, (2, 128, 256), *[(2, 256, 256)] * 21]
    )
    pool_kernels = [conv.pool.kernel if conv.pool else 0 for conv in table]
    assert pool_kernels == [3, 0, 0, 0, 2, *[0] * 22]


@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_predictions_match_the_products_of_eq_9_and_13(slope: float) -> None:
    table = conv_table(composed("model=vgg_b"))
    stds = np.random.default_rng(0).uniform(0.01, 0.1, len(table))
    forward, backward = predict(with_stds(table, stds), slope)
    response = 27 * stds[0] ** 2  # conv1: 3 x 3 x 3 inputs of variance 1
    assert forward[0] == pytest.approx(response)
    for i in range(1, 10):
        kernel, channels, _ = VGG_B[i]
        response *= (1 + slope**2) / 2 * kernel**2 * channels * stds[i] ** 2
        assert forward[i] == pytest.approx(response)
    gradient = 1.0
    for i in range(9, 0, -1):
        kernel, _, filters = VGG_B[i]
        gradient *= (1 + slope**2) / 2 * kernel**2 * filters * stds[i] ** 2
        assert backward[i] == pytest.approx(gradient)
    assert math.isnan(backward[0])


@pytest.mark.parametrize("act", ["relu", "prelu"])
@pytest.mark.parametrize("init", INIT_NAMES)
def test_networks_without_borders_and_pools_match_the_predictions(act: str, init: str) -> None:
    """1 x 1 filters have no borders. Without the 1/2 of Eq. 8, the last ratio would be 16."""
    config = network_of(stage(kernel=1, pad=[0], convs=5), act=act, init=init)
    table = conv_table(config)
    signals = measure(config, crop=12, batch=1, seeds=range(60))
    he_variances = {"he": [2 / 128] * 5, "he_forward": [2 / 3, *[2 / 128] * 4]}
    shrink = 1 if act == "relu" else 1.0625
    variances = {name: np.array(values) / shrink for name, values in he_variances.items()}
    variances["xavier"] = np.array([1 / 3, *[1 / 128] * 4])
    variances["gaussian"] = np.full(5, 1e-4)
    slope = 0 if act == "relu" else 0.25
    expected = predict(with_stds(table, np.sqrt(variances[init])), slope)
    for measured, predicted in zip((signals.y, signals.dx), expected, strict=True):
        ratio = measured[:, 1:] / predicted[1:]
        error = standard_error(ratio)
        assert (error < 0.08).all()
        assert (abs(ratio.mean(axis=0) - 1) < 4 * error).all()


def test_border_factors_of_one_layer_match_a_count() -> None:
    """3 x 3 on a 4 x 4 map, pad 1: 4 corners see 4 of 9 inputs, 8 edges 6, 4 positions all."""
    factors = borders(conv_table(network_of(stage(convs=2))), 4)
    assert factors.y[0] == pytest.approx((4 * 4 + 8 * 6 + 4 * 9) / (16 * 9))
    assert factors.dx[1] == pytest.approx((4 * 4 + 8 * 6 + 4 * 9) / (16 * 9))
    # 2 x 2 without padding: every output is full; a corner feeds one of them, an edge two.
    factors = borders(conv_table(network_of(stage(convs=2, kernel=2, pad=[0]))), 4)
    assert list(factors.y) == [1, 1]
    assert factors.dx[1] == pytest.approx((4 * 1 + 4 * 2 + 1 * 4) / (9 * 4))


@pytest.mark.parametrize("act", ["relu", "prelu"])
def test_borders_and_pools_explain_the_measured_variances(act: str) -> None:
    """On small maps, where the pool does not cover the last row, the factors are far from 1."""
    config = network_of(stage(pool=2), stage(pad=[0, 1], kernel=2, convs=3), act=act)
    table, slope = conv_table(config), config.act.slope
    variances = [2 / ((1 + slope**2) * conv.layer.fan_out) for conv in table]
    signals = measure(config, crop=9, batch=2, seeds=range(60))
    at_borders = borders(table, 9)
    pooled = pools(table, signals, at_borders, slope)
    predicted = predict(with_stds(table, np.sqrt(variances)), slope)
    for direction, last in ((FORWARD, -1), (BACKWARD, 1)):
        factors = at_borders.variances()[direction] * pooled[direction]
        assert not 0.8 < factors.mean(axis=0)[last] < 1.25
        rest = (signals.variances()[direction] / predicted[direction] / factors)[:, 1:]
        error = standard_error(rest)
        assert (error < 0.1).all()
        assert (abs(rest.mean(axis=0) - 1) < 4 * error).all()


def test_a_pool_of_independent_responses_follows_order_statistics() -> None:
    """1 x 1 filters on noise: neighbours are independent, given the weights."""
    one_conv = stage(kernel=1, pad=[0], convs=1)
    config = network_of(replace(one_conv, pool=2), one_conv)
    table = conv_table(config)
    signals = measure(config, crop=64, batch=2, seeds=range(4))
    factors = pools(table, signals, borders(table, 64), 0.0)
    maxima = np.random.default_rng(0).standard_normal((400_000, 4)).max(axis=1)
    assert factors[FORWARD, :, 1] == pytest.approx(
        np.full(4, (np.maximum(maxima, 0) ** 2).mean() / 0.5), rel=0.03
    )
    # conv2's input is behind the pool: only the gradient at conv1's output has passed it.
    assert factors[BACKWARD, :, 1] == pytest.approx(np.ones(4))
    passed = signals.dy[:, 0] / signals.dx[:, 1]
    assert passed == pytest.approx(np.full(4, (1 - 1 / 16) / 4), rel=0.03)


def test_claims_match_the_paper(results: Results) -> None:
    by_statement = {claim.statement: claim for claim in claims(results)}

    def claim(*words: str) -> Claim:
        (match,) = [c for text, c in by_statement.items() if all(word in text for word in words)]
        return match

    for filters, std in ((64, 0.059), (128, 0.042), (256, 0.029), (512, 0.021)):
        initial = claim(f"std of the {filters} filters")
        assert float(initial.closed_form) == pytest.approx(std, abs=6e-4)
        assert float(initial.measured) == pytest.approx(std, abs=6e-4)
    rounded = 5.9 * 4.2**2 * 2.9**2 * 2.1**4
    he, fixed = (
        results[Network("vgg_b", "relu", init)].draws[BACKWARD, :, 1] for init in ("he", "gaussian")
    )
    assert np.sqrt(he / fixed) == pytest.approx(np.full(2, 16728.8), rel=2e-3)
    assert rounded == pytest.approx(16728.8, rel=0.02)
    assert claim("gradient", "std 0.01 against He").closed_form == "1/16728.8"
    for model, num_layers in (("small14", 11), ("vgg_b", 10)):
        xavier, he_forward = (
            results[Network(model, "relu", init)].draws[FORWARD]
            for init in ("xavier", "he_forward")
        )
        layers = np.arange(1, num_layers + 1)
        assert np.sqrt(xavier / he_forward) == pytest.approx(
            np.tile(2 ** (-layers / 2), (2, 1)), rel=2e-3
        )
        assert claim(f"{model}, ReLU", "Xavier").paper == f"1/sqrt(2)^{num_layers}"
    assert all(claim.measured != NOT_RUN for claim in by_statement.values())


def test_all_initialisations_deviate_from_the_predictions_alike(results: Results) -> None:
    for model in ("small14", "vgg_b"):
        for act in ("relu", "prelu"):
            assert 0 < disagreement(results, model, act) < 5e-3


def test_without_vgg_b_its_claims_say_not_run(results: Results) -> None:
    of_small14 = {key: result for key, result in results.items() if key.model == "small14"}
    is_missing = [claim.measured == NOT_RUN for claim in claims(of_small14)]
    assert is_missing == [False] * 4 + [True] + [False] * 2


def test_the_command_writes_the_page_its_table_and_figures(tmp_path: Path) -> None:
    options = ["--models", "small14", "--crop", "64", "--batch", "1", "--seeds", "2"]
    new, again = tmp_path / "new", tmp_path / "again"
    completed = run_program("scripts/reproduce.py", "analysis", *options, "--out", str(new))
    study = read_signals(new)
    assert completed.stdout.endswith(f"Page: {new / 'README.md'}\n")
    with open(new / "propagation.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 4 * 11
    assert table[1]["layer"] == "conv2_1"
    for row in table:
        assert float(row["forward_measured"]) > 0
        assert (row["backward_measured"] == "") == (row["l"] == "1")
    with Image.open(new / "small14.png") as image:
        image.load()
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20  # not blank
    svg = ElementTree.parse(new / "small14.svg").getroot()
    texts = "".join("".join(node.itertext()) for node in svg.iter() if node.tag.endswith("text"))
    assert "He backward, Eq. 14" in texts
    page = (new / "README.md").read_text()
    for claim in claims(evaluate(study)):
        assert f"| {claim.statement} | {claim.paper} | {claim.closed_form} | " in page
    for name in ("propagation.csv", "small14.png", "small14.svg"):
        assert f"({name})" in page
        assert (new / name).exists()
    assert "--models small14 --crop 64 --batch 1 --seeds 2" in page
    assert "small30" not in page
    write_page(study, again)
    for path in sorted(again.iterdir()):
        assert path.read_bytes() == (new / path.name).read_bytes()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--models", "small15"], "--models=small15 is unknown: choose from A, B, C, small14"),
        (["--models", "small14", "--crop", "16"], "data.crop=16 is too small for model small14"),
        (["--seeds", "0"], "--seeds 0 must be at least 2"),
        (["--rewrite"], "out/signals.json is missing"),
        (["--rewrite", "--seeds", "3"], "--rewrite takes its settings from the file"),
    ],
)
def test_bad_options_are_refused(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as exit_info:
        reproduce(["analysis", *options, "--out", str(out)])
    assert exit_info.value.code == 1
    stderr = capsys.readouterr().err
    assert sentence in stderr
    assert len(stderr.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("damage", ["missing", "cut short", "another model", "another layer"])
def test_damaged_measurements_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "signals.json"
    row = [[1.0] * 11]  # one seed of small14
    network = {"model": "small14", "x": row, "y": row, "dx": row, "dy": row}
    content = {
        "settings": {"models": ["small14"], "crop": 64, "batch": 1, "seeds": 1},
        "torch": "2",
        "networks": [
            network | {"act": act, "init": init} for act in ("relu", "prelu") for init in INIT_NAMES
        ],
    }
    text = json.dumps(content)
    path.write_text(text)
    read_signals(tmp_path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut short":
        path.write_text(text[:-5])
    elif damage == "another model":
        path.write_text(text.replace("small14", "small30"))
    else:
        path.write_text(text.replace("[1.0, 1.0,", "[1.0,", 1))
    with pytest.raises(UserError, match=r"signals\.json is"):
        read_signals(tmp_path)


def test_no_two_series_share_colour_line_or_marker() -> None:
    styles = [series(index) for index in range(7)]
    for key in ("color", "linestyle", "marker"):
        assert len({str(style[key]) for style in styles}) == 7
