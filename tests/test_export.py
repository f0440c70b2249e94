"""Exported files give the probabilities of eval.py in other programs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema import TrainConfig
from configs.store import from_dict
from data.draws import centre_batches
from data.loading import load
from data.sources.index import scan_folder
from engine.checkpoint import load_checkpoint
from engine.precision import set_precision
from evaluation.classifier import load_classifier
from evaluation.scorer import Scorer
from tests.conftest import ROOT, run_program


@pytest.fixture(scope="module")
def best(undisturbed: Path) -> Path:
    return undisturbed / "checkpoints" / "best.pt"


@pytest.fixture(scope="module")
def scored(best: Path, small: Path) -> tuple[torch.Tensor, np.ndarray]:
    """Crops of five validation images, and the scores of eval.py's own scorer in fp32."""
    run = from_dict(load_checkpoint(best)["config"], TrainConfig)
    index = scan_folder(small, "val")
    draws = centre_batches(np.arange(0, 50, 10), run.data.validation_scale, 5)
    how = {"crop": run.data.crop, "loader": run.loader, "on_error": "stop", "on_event": print}
    [batch] = load(index, draws, **how)
    classifier = load_classifier(best)
    scorer = Scorer(
        network=classifier.network,
        mean=classifier.mean,
        precision=set_precision("fp32", torch.device("cpu")),
        crop=run.data.crop,
        views="centre",
    )
    return batch.images, scorer.scores(batch.images).numpy()


def exported(best: Path, kind: str, out: Path) -> Path:
    run_program("scripts/export.py", f"checkpoint={best}", f"format={kind}", f"out={out}")
    assert [path.name for path in out.parent.iterdir()] == [out.name]  # nothing else is left there
    return out


def test_onnx(best: Path, scored: Any, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(exported(best, "onnx", tmp_path / "net.onnx")))
    images, expected = scored
    for count in (1, 5):
        [probabilities] = session.run(["probabilities"], {"images": images[:count].numpy()})
        np.testing.assert_allclose(probabilities, expected[:count], atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["classes"].split("\n") == load_checkpoint(best)["classes"]


def test_torch_export(best: Path, scored: Any, tmp_path: Path) -> None:
    extra = {"classes": "", "crop": ""}
    program = torch.export.load(
        exported(best, "torch_export", tmp_path / "net.pt2"), extra_files=extra
    )
    images, expected = scored
    for count in (1, 5):
        probabilities = program.module()(images[:count]).detach().numpy()
        np.testing.assert_allclose(probabilities, expected[:count], atol=1e-5)
    assert str(extra["crop"]) == str(images.shape[1])


def test_safetensors_and_hub(best: Path, scored: Any, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = safetensors.load_file(exported(best, "safetensors", tmp_path / "net.safetensors"))
    module = torch.hub.load(str(ROOT), "small14", source="local", checkpoint=str(best))
    module.load_state_dict(tensors)
    images, expected = scored
    np.testing.assert_allclose(module(images).detach().numpy(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="is a checkpoint of model small14, not A"):
        torch.hub.load(str(ROOT), "a", source="local", checkpoint=str(best))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["format=onnx"], "usage: python scripts/export.py"),
        (["checkpoint={best}", "format=tflite"], "format=tflite is unknown"),
        (["checkpoint=none.pt", "format=onnx"], "there is no checkpoint at none.pt"),
        (["checkpoint={best}", "format=onnx", "out=/proc/net.onnx"], "cannot write /proc/net.onnx"),
    ],
)
def test_refusals(best: Path, words: list[str], sentence: str) -> None:
    arguments = [word.format(best=best) for word in words]
    done = run_program("scripts/export.py", *arguments, check=False)
    assert done.returncode == 1
    assert f"error: {sentence}" in done.stderr
    assert "Traceback" not in done.stderr
