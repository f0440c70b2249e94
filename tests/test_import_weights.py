"""Published weights give torchvision's logits and classes when imported."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import vgg13, vgg16, vgg19

from common.errors import UserError
from configs.schema import TrainConfig
from configs.store import from_dict
from data.normalise import network_input
from engine.checkpoint import load_checkpoint
from models.network import build_network
from scripts.import_weights import MEAN, NUM_CLASSES, STD, checkpoint
from tests.conftest import run_program
from tests.pictures import jpeg

CLASSES = [f"n{i:08d}" for i in range(NUM_CLASSES)]


def test_logits_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    reference = vgg19(weights=None).eval()
    state = checkpoint("vgg19", reference.state_dict(), CLASSES, "/imagenet")
    config = from_dict(state["config"], TrainConfig)
    network = build_network(config.model, config.act, config.init, NUM_CLASSES, seed=None)
    network.load_state_dict(state["network"])
    images = torch.randint(256, (2, 224, 224, 3), dtype=torch.uint8)
    theirs = images.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).reshape(3, 1, 1)
    with torch.inference_mode():
        ours = network(network_input(images, state["mean"]))
        expected = reference(theirs / torch.tensor(STD).reshape(3, 1, 1))
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize(("model", "build"), [("vgg13", vgg13), ("vgg16", vgg16)])
def test_other_depths_have_the_same_layers(model: str, build: object) -> None:
    with torch.device("meta"):
        published = build(weights=None).state_dict()  # type: ignore[operator]
    state = {name: torch.zeros(value.shape) for name, value in published.items()}
    assert checkpoint(model, state, CLASSES, "/imagenet")["network"].keys()
    with pytest.raises(UserError, match="not the weights of torchvision's model"):
        checkpoint("vgg19", state, CLASSES, "/imagenet")


def test_eval_reads_the_imported_checkpoint(tmp_path: Path) -> None:
    image = jpeg(60, 60)
    for name in CLASSES:
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        (tmp_path / "data" / "val" / name / "1.jpg").write_bytes(image)
    torch.manual_seed(0)
    network = vgg13(weights=None)
    torch.save(network.state_dict(), tmp_path / "vgg13.pth")
    data, out = str(tmp_path / "data"), tmp_path / "imported" / "vgg13.pt"
    words = ["scripts/import_weights.py", "vgg13", str(tmp_path / "vgg13.pth"), "--data", data]
    run_program(*words, "--out", str(out))
    assert load_checkpoint(out)["classes"] == CLASSES
    run_program("eval.py", f"checkpoint={out}", "subset=2", "device=cpu")
    [result] = out.parent.glob("result*.json")
    assert json.loads(result.read_text())["images"] == 2
