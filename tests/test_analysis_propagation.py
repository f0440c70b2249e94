"""Signal propagation: Eq. 9 and 13 against loops, the paper's numbers, and random networks."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from analysis.propagation.measure import measure
from analysis.propagation.page import NOT_RUN, Claim, claims, disagreement, write_page
from analysis.propagation.study import (
    INITS,
    Results,
    Settings,
    Study,
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
    pools,
    predict,
)
from common.style import series
from configs.schema import StageConfig, TrainConfig
from scripts.reproduce import main as reproduce
from tests.conftest import composed, run_program

# VGG model B of [25], typed by hand: (kernel, channels, filters).
VGG_B = [(3, 3, 64), (3, 64, 64), (3, 64, 128), (3, 128, 128), (3, 128, 256), (3, 256, 256)]
VGG_B += [(3, 256, 512), (3, 512, 512), (3, 512, 512), (3, 512, 512)]


def stack(*stages: StageConfig, act: str = "relu", init: str = "he") -> TrainConfig:
    config: TrainConfig = composed(f"act={act}", f"init={init}")
    return replace(config, model=replace(config.model, stages=list(stages), extra_convs=0))


def narrow(**keys: Any) -> StageConfig:
    return replace(StageConfig(filters=128, convs=4), **keys)


def sizes(table: list[Conv]) -> list[tuple[int, int, int]]:
    """(kernel, channels, filters) of each convolution."""
    convs = [conv.layer for conv in table]
    return [(conv.kernel, conv.in_channels, conv.out_channels) for conv in convs]


def standard_error(values: Floats) -> Floats:
    """Of the mean over seeds, [seeds, L] -> [L]."""
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))


@pytest.fixture(scope="module")
def measured() -> Study:
    """All four initialisations on two networks; crops so small that borders matter."""
    return measure_all(Settings(("small14", "vgg_b"), crop=64, batch=1, seeds=2))


@pytest.fixture(scope="module")
def results(measured: Study) -> Results:
    return evaluate(measured)


def test_layers_match_the_paper() -> None:
    assert sizes(conv_table(composed("model=vgg_b"))) == VGG_B
    table = conv_table(composed("model=small30"))
    assert sizes(table) == (
        [(7, 3, 64), (2, 64, 128), *[(2, 128, 128)] * 3, (2, 128, 256), *[(2, 256, 256)] * 21]
    )
    pools_of_table = [conv.pool.kernel if conv.pool else 0 for conv in table]
    assert pools_of_table == [3, 0, 0, 0, 2, *[0] * 22]


@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_predictions_match_the_products_of_eq_9_and_13(slope: float) -> None:
    table = conv_table(composed("model=vgg_b"))
    stds = np.random.default_rng(0).uniform(0.01, 0.1, len(table))
    forward, backward = predict(table, stds, slope)
    up = 27 * stds[0] ** 2  # conv1: 3 x 3 x 3 inputs of variance 1
    assert forward[0] == pytest.approx(up)
    for i in range(1, 10):
        kernel, channels, _ = VGG_B[i]
        up *= (1 + slope**2) / 2 * kernel**2 * channels * stds[i] ** 2
        assert forward[i] == pytest.approx(up)
    down = 1.0
    for i in range(9, 0, -1):
        kernel, _, filters = VGG_B[i]
        down *= (1 + slope**2) / 2 * kernel**2 * filters * stds[i] ** 2
        assert backward[i] == pytest.approx(down)
    assert math.isnan(backward[0])


@pytest.mark.parametrize("act", ["relu", "prelu"])
@pytest.mark.parametrize("init", INITS)
def test_networks_without_borders_and_pools_match_the_predictions(act: str, init: str) -> None:
    """1 x 1 filters have no borders. Without the 1/2 of Eq. 8 the last ratio would be 16."""
    config = stack(narrow(kernel=1, pad=[0], convs=5), act=act, init=init)
    table = conv_table(config)
    signals = measure(config, crop=12, batch=1, seeds=range(60))
    stds = {"he": [2 / 128] * 5, "he_forward": [2 / 3, *[2 / 128] * 4]}
    shrink = 1 if act == "relu" else 1.0625
    variances = {name: np.array(values) / shrink for name, values in stds.items()}
    variances["xavier"] = np.array([1 / 3, *[1 / 128] * 4])
    variances["gaussian"] = np.full(5, 1e-4)
    expected = predict(table, np.sqrt(variances[init]), 0 if act == "relu" else 0.25)
    for measured, theory in zip((signals.y, signals.dx), expected, strict=True):
        ratio = measured[:, 1:] / theory[1:]
        error = standard_error(ratio)
        assert (error < 0.08).all()
        assert (abs(ratio.mean(axis=0) - 1) < 4 * error).all()


def test_border_factors_of_one_layer_match_a_count() -> None:
    """3 x 3 on a 4 x 4 map, pad 1: 4 corners see 4 of 9 inputs, 8 edges 6, 4 positions all."""
    table = conv_table(stack(narrow(convs=2)))
    factors = borders(table, 4)
    assert factors.y[0] == pytest.approx((4 * 4 + 8 * 6 + 4 * 9) / (16 * 9))
    assert factors.dx[1] == pytest.approx((4 * 4 + 8 * 6 + 4 * 9) / (16 * 9))
    # 2 x 2 without padding: every output is full; a corner feeds one of them, an edge two.
    factors = borders(conv_table(stack(narrow(convs=2, kernel=2, pad=[0]))), 4)
    assert list(factors.y) == [1, 1]
    assert factors.dx[1] == pytest.approx((4 * 1 + 4 * 2 + 1 * 4) / (9 * 4))


@pytest.mark.parametrize("act", ["relu", "prelu"])
def test_borders_and_pools_explain_the_measured_variances(act: str) -> None:
    """On small maps, whose pool leaves a row over, the factors are far from 1."""
    config = stack(narrow(pool=2), narrow(pad=[0, 1], kernel=2, convs=3), act=act)
    table = conv_table(config)
    variances = [2 / ((1 + config.act.slope**2) * conv.layer.fan_out) for conv in table]
    signals = measure(config, crop=9, batch=2, seeds=range(60))
    shares = borders(table, 9)
    known = pools(table, signals, shares, config.act.slope)
    theory = predict(table, np.sqrt(variances), config.act.slope)
    for d, far in ((FORWARD, -1), (BACKWARD, 1)):
        factors = shares.variances()[d] * known[d]
        assert not 0.8 < factors.mean(axis=0)[far] < 1.25
        rest = (signals.variances()[d] / theory[d] / factors)[:, 1:]
        error = standard_error(rest)
        assert (error < 0.1).all()
        assert (abs(rest.mean(axis=0) - 1) < 4 * error).all()


def test_a_pool_of_independent_responses_follows_order_statistics() -> None:
    """1 x 1 filters on noise: neighbours are independent, given the weights."""
    one_conv = narrow(kernel=1, pad=[0], convs=1)
    config = stack(replace(one_conv, pool=2), one_conv)
    table = conv_table(config)
    signals = measure(config, crop=64, batch=2, seeds=range(4))
    factors = pools(table, signals, borders(table, 64), 0.0)
    four = np.random.default_rng(0).standard_normal((400_000, 4)).max(axis=1)
    assert factors[FORWARD, :, 1] == pytest.approx(
        np.full(4, (np.maximum(four, 0) ** 2).mean() / 0.5), rel=0.03
    )
    # conv2's input is behind the pool: only the gradient at conv1's output has passed it.
    assert factors[BACKWARD, :, 1] == pytest.approx(np.ones(4))
    passed = signals.dy[:, 0] / signals.dx[:, 1]
    assert passed == pytest.approx(np.full(4, (1 - 1 / 16) / 4), rel=0.03)


def test_claims_match_the_paper(results: Results) -> None:
    stated = {claim.statement: claim for claim in claims(results)}

    def claim(*words: str) -> Claim:
        (match,) = [c for text, c in stated.items() if all(word in text for word in words)]
        return match

    for filters, std in ((64, 0.059), (128, 0.042), (256, 0.029), (512, 0.021)):
        initial = claim(f"std of the {filters} filters")
        assert float(initial.closed_form) == pytest.approx(std, abs=6e-4)
        assert float(initial.measured) == pytest.approx(std, abs=6e-4)
    rounded = 5.9 * 4.2**2 * 2.9**2 * 2.1**4
    he, small = (
        results["vgg_b", "relu", rule].draws[BACKWARD, :, 1] for rule in ("he", "gaussian")
    )
    assert np.sqrt(he / small) == pytest.approx(np.full(2, 16728.8), rel=2e-3)
    assert rounded == pytest.approx(16728.8, rel=0.02)
    assert claim("gradient", "std 0.01 against He").closed_form == "1/16728.8"
    for model, layers in (("small14", 11), ("vgg_b", 10)):
        forward = {rule: results[model, "relu", rule].draws[FORWARD] for rule in INITS}
        ratio = np.sqrt(forward["xavier"] / forward["he_forward"])
        numbers = np.arange(1, layers + 1)
        assert ratio == pytest.approx(np.tile(2 ** (-numbers / 2), (2, 1)), rel=2e-3)
        assert claim(f"{model}, ReLU", "Xavier").paper == f"1/sqrt(2)^{layers}"
    assert all(each.measured != NOT_RUN for each in stated.values())


def test_all_initialisations_deviate_from_the_predictions_alike(results: Results) -> None:
    for model in ("small14", "vgg_b"):
        for act in ("relu", "prelu"):
            assert 0 < disagreement(results, model, act) < 5e-3


def test_without_vgg_b_its_claims_say_not_run(results: Results) -> None:
    part = {key: result for key, result in results.items() if key[0] == "small14"}
    is_missing = [claim.measured == NOT_RUN for claim in claims(part)]
    assert is_missing == [False] * 4 + [True] + [False] * 2


def test_the_command_writes_the_page_its_table_and_figures(tmp_path: Path) -> None:
    options = ["--models", "small14", "--crop", "64", "--batch", "1", "--seeds", "2"]
    done = run_program("scripts/reproduce.py", "analysis", *options, "--out", str(tmp_path / "new"))
    study = read_signals(tmp_path / "new")
    assert done.stdout.endswith(f"Page: {tmp_path / 'new' / 'README.md'}\n")
    with open(tmp_path / "new" / "propagation.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 4 * 11
    assert table[1]["layer"] == "conv2_1"
    for row in table:
        assert float(row["forward_measured"]) > 0
        assert (row["backward_measured"] == "") == (row["l"] == "1")
    with Image.open(tmp_path / "new" / "small14.png") as image:
        image.load()
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20  # not blank
    svg = ElementTree.parse(tmp_path / "new" / "small14.svg").getroot()
    texts = "".join("".join(node.itertext()) for node in svg.iter() if node.tag.endswith("text"))
    assert "He backward, Eq. 14" in texts
    page = (tmp_path / "new" / "README.md").read_text()
    for claim in claims(evaluate(study)):
        assert f"| {claim.statement} | {claim.paper} | {claim.closed_form} | " in page
    for name in ("propagation.csv", "small14.png", "small14.svg"):
        assert f"({name})" in page
        assert (tmp_path / "new" / name).exists()
    assert "--models small14 --crop 64 --batch 1 --seeds 2" in page
    assert "small30" not in page
    write_page(study, tmp_path / "again")
    for path in sorted((tmp_path / "again").iterdir()):
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes()


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
    with pytest.raises(SystemExit) as ended:
        reproduce(["analysis", *options, "--out", str(out)])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not out.exists()


def test_no_two_series_share_colour_line_or_marker() -> None:
    looks = [series(place) for place in range(7)]
    for key in ("color", "linestyle", "marker"):
        assert len({str(look[key]) for look in looks}) == 7
