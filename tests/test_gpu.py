"""What only a GPU can show. Run with `pytest -m gpu` on a machine that has one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.draws import training_batches
from data.loading import load
from data.normalise import load_mean
from data.sources.index import scan_folder
from engine.precision import set_precision
from evaluation.dense import DenseHead, dense_scores
from models.dropout import keep_mask, unit_keys
from models.network import build_network
from tests.conftest import composed, metrics, run_program

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_dropout_masks_are_those_of_the_cpu() -> None:
    keys, units = torch.randint(2**62, (64,)), unit_keys(1, 512)
    there = keep_mask(keys.cuda(), units.cuda(), 0.5).cpu()
    assert torch.equal(there, keep_mask(keys, units, 0.5))


def test_dali_on_the_gpu_sees_what_pillow_sees(synthetic: Path) -> None:
    index = scan_folder(synthetic, "train")
    seen = {}
    for choice in (["loader=dali", "loader.device=gpu"], ["loader=torchvision"]):
        draws = training_batches(0, 0, 4, 32, len(index), (128, 256))
        loader = composed(*choice).loader
        batches = list(load(index, draws, crop=112, loader=loader, on_error="stop", on_event=print))
        assert all(isinstance(batch.images, torch.Tensor) for batch in batches)
        seen[choice[0]] = torch.cat([batch.images.cpu() for batch in batches]).float()
    gap = (seen["loader=dali"] - seen["loader=torchvision"]).abs().mean((1, 2, 3))
    assert gap.max() < 1.0  # nvJPEG and libjpeg round differently
    assert gap.mean() < 0.5


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_training_agrees_with_the_cpu(
    command: list[str], tmp_path: Path, undisturbed: Path, precision: str, compiled: bool
) -> None:
    more = [f"precision={precision}", f"compile={compiled}", "device=cuda", "max_steps=7"]
    run_program(*command, f"runs={tmp_path}", "name=gpu", *more)
    ours, theirs = metrics(tmp_path / "gpu")[0]["loss"], metrics(undisturbed)[0]["loss"]
    assert ours == pytest.approx(theirs, rel=0.02 if precision in ("bf16", "fp16") else 1e-3)


def test_eval_agrees_with_the_cpu(undisturbed: Path, tmp_path: Path) -> None:
    path = undisturbed / "checkpoints" / "best.pt"
    errors = {}
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.json"
        arguments = [f"checkpoint={path}", "views=dense", f"device={device}", f"out={out}"]
        run_program("eval.py", *arguments, "loader.device=cpu")
        errors[device] = json.loads(out.read_text())["combined"]["top1_error"]
    assert abs(errors["cuda"] - errors["cpu"]) <= 4


def test_dense_scores_agree_with_the_cpu() -> None:
    config = composed("model=A", "model.fc=[64,64]", "init.fc_std=[0.01,0.1,0.1]")
    network = build_network(config.model, config.act, config.init, 10).eval()
    images = torch.randint(256, (2, 256, 341, 3), dtype=torch.uint8)
    scores = []
    for name in ("cpu", "cuda"):
        precision = set_precision("fp32", torch.device(name))
        network = network.to(name)
        head, mean = DenseHead(network, 224, precision), load_mean("channel").to(name)
        batch_scores = dense_scores(network.trunk, head, images, mean, precision)
        scores.append(batch_scores.cpu().numpy())
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
