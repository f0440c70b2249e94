"""The study of the first steps, against closed forms, naive loops and train.py."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from analysis.start.curvature import bound, curvature
from analysis.start.measure import _FeatureSums, predicted_second
from analysis.start.record import read_records
from analysis.start.remedies import REMEDIES, scale_inputs, scale_weights
from models.network import build_network
from tests.conftest import TINY, composed, metrics, run_program


def test_curvature_of_a_quadratic_is_its_hessians() -> None:
    matrix = torch.diag(torch.tensor([9.0, 3.0, 1.0, 0.5], dtype=torch.double))
    x = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.double, requires_grad=True)
    y = torch.tensor([2.0], dtype=torch.double, requires_grad=True)
    along, largest = curvature(lambda: (x @ matrix @ x + 4 * y**2).sum() / 2, [x, y], 40)
    g = torch.cat([matrix @ x, 4 * y]).detach()
    hessian = torch.block_diag(matrix, torch.tensor([[4.0]], dtype=torch.double))
    assert along == pytest.approx((g @ hessian @ g / (g @ g)).item())
    assert largest == pytest.approx(9, rel=1e-6)


def test_descent_with_momentum_diverges_beyond_the_bound() -> None:
    for curvature_along, grows in ((0.99 * bound(0.1, 0.9), False), (1.01 * bound(0.1, 0.9), True)):
        position, velocity = 1.0, 0.0
        for _ in range(4000):
            velocity = 0.9 * velocity - 0.1 * curvature_along * position
            position += velocity
        assert (abs(position) > 1) == grows


def test_running_sums_match_naive_loops() -> None:
    features = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    features[:, 2] = -1
    sums = _FeatureSums()
    for rows in (slice(0, 4), slice(4, 6)):
        sums.add(features[rows])
    rms, dead, common = sums.numbers()
    flat = features.flatten(1).double()
    pairs = [(flat[i] @ flat[j]).item() for i in range(6) for j in range(6) if i != j]
    energy = flat.square().sum(1).mean().item()
    assert rms == pytest.approx(features.square().mean().sqrt().item())
    assert dead == 0.25
    assert common == pytest.approx(sum(pairs) / len(pairs) / energy, rel=1e-5)


def test_predicted_loss_is_that_of_a_step_of_fc3_on_equal_features() -> None:
    """With images that are all alike, a step of fc3 gives the predicted loss of step 2."""
    features = torch.full((8, 16), 0.7, dtype=torch.double)
    first, second = torch.tensor([0, 0, 1, 3, 3, 3, 5, 6]), torch.tensor([1, 2, 2, 4, 0, 6, 6, 5])
    fc3 = nn.Linear(16, 10, bias=False).double()
    nn.init.zeros_(fc3.weight)
    nn.functional.cross_entropy(fc3(features), first).backward()
    with torch.no_grad():
        fc3.weight -= 2.0 * fc3.weight.grad  # type: ignore[operator]
        loss = nn.functional.cross_entropy(fc3(features), second).item()
    kernel = (features[0] @ features[1]).item()
    assert predicted_second(2.0 * kernel, first, second, 10) == pytest.approx(loss)


def test_scaled_inputs_and_weights_scale_the_features() -> None:
    config = composed("model=small14", "model.fc=[16,16]")
    networks = [build_network(config.model, config.act, config.init, 10) for _ in range(3)]
    plain, weights, inputs = networks
    scale_weights(weights, 1 / 8)
    scale_inputs(inputs, 1 / 8)
    images = 50 * torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(weights(images), plain(images) / 8)
        assert torch.equal(inputs(images), plain(images) / 8)


def test_the_study_trains_like_train_py_and_writes_its_page(small: Path, tmp_path: Path) -> None:
    keys = [key for key in TINY if not key.startswith("model=")]
    study = ["scripts/reproduce.py", "start", "--data", str(small), "--acts", "prelu"]
    study += ["--seeds", "0", "--steps", "3", "--curvature-images", "4", "--out", str(tmp_path)]
    study += ["--remedies", "letter", "default", "inputs8", "--", *keys]
    run_program(*study)
    records = {record.case.remedy: record for record in read_records(tmp_path / "records")}
    assert records.keys() == {"letter", "default", "inputs8"}
    command = ["train.py", *TINY, "data=folder", f"data.root={small}", f"runs={tmp_path}"]
    for remedy in ("letter", "default"):
        more = [f"name={remedy}", "max_steps=3", "log_every=1", *REMEDIES[remedy].overrides]
        run_program(*command, *more)
        lines = [line for line in metrics(tmp_path / remedy) if line["kind"] == "train"]
        record = records[remedy]
        assert record.losses == pytest.approx([line["loss"] for line in lines], rel=1e-4)
        assert record.norms == pytest.approx([line["gradient_norm"] for line in lines], rel=1e-3)
        for probe in record.probes:
            of_weights = math.sqrt(sum(layer.gradient**2 for layer in probe.layers))
            assert 0 < of_weights < record.norms[probe.step - 1]  # which includes biases and slopes
    first = {layer.name: layer for layer in records["default"].probes[0].layers}
    letter = {layer.name: layer for layer in records["letter"].probes[0].layers}
    assert all(letter[n].gradient == pytest.approx(first[n].gradient, rel=1e-3) for n in first)
    clipped = records["default"]
    assert clipped.rate(1) == pytest.approx(0.01 / clipped.norms[0], rel=1e-3)
    page = (tmp_path / "README.md").read_text()
    assert "clipped at a norm of 1 (default)" in page
    assert len(list(tmp_path.glob("*.png"))) == 2
    again = run_program(*study)
    assert "highest loss" in again.stdout


def test_bad_options_are_refused(small: Path, tmp_path: Path) -> None:
    for more, sentence in (
        (["--steps", "1"], "--steps must be at least 2"),
        (["--models", "Z"], "Could not find 'model/Z'"),
        (["--data", "/nowhere"], "/nowhere"),
    ):
        base = ["scripts/reproduce.py", "start", "--data", str(small), "--out", str(tmp_path)]
        done = run_program(*base, *more, check=False)
        assert done.returncode == 1
        assert sentence in done.stderr
        assert done.stderr.startswith("error: ")
