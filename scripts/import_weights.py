"""Turn torchvision's published VGG weights into a checkpoint for eval.py.

python scripts/import_weights.py vgg19 vgg19-dcbb9e9d.pth --data /imagenet [--out FILE.pt]

The errors of these networks are known: eval.py must find the ones that torchvision publishes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn

from common.errors import UserError, one_sentence, refusing
from configs.schema import TrainConfig
from configs.store import compose_config, to_dict
from data.sources.index import scan_folder
from engine.checkpoint import save_checkpoint
from engine.progress import Progress
from models.network import build_network

MODELS = {"vgg13": "vgg_b", "vgg16": "vgg16", "vgg19": "vgg19"}  # torchvision's name: ours
NUM_CLASSES = 1000

# torchvision divides pixel values by 255, then normalises with these, RGB.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def convert(published: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """torchvision's state dict under our names, for inputs of 0..255 less the mean 255 * MEAN.

    Both have the same layers in the same order, and fc1 takes the features of the last map in the
    same order. The division by 255 * STD moves into conv1. This is exact: with torchvision's own
    mean, zero padding stands for the same pixel value in both. Raises UserError for a state dict
    of another architecture.
    """
    own = network.state_dict()
    shapes = [tuple(value.shape) for value in published.values()]
    if shapes != [tuple(value.shape) for value in own.values()]:
        raise UserError("these are not the weights of torchvision's model of this name")
    state = {name: value.float() for name, value in zip(own, published.values(), strict=True)}
    first = next(iter(state))
    state[first] = state[first] / (255 * torch.tensor(STD).reshape(1, 3, 1, 1))
    return state


def checkpoint(model: str, published: dict[str, Tensor], classes: list[str], root: str) -> Any:
    """The content of a checkpoint like best.pt, of a network for these 1,000 classes.

    torchvision's labels are the ranks of the WordNet ids, as ours are.
    """
    keys = [f"model={MODELS[model]}", "act=relu", "init=he", "precision=fp32", "data.scale=256"]
    config = compose_config([*keys, f"data.root={root}"], TrainConfig)
    network = build_network(config.model, config.act, config.init, NUM_CLASSES, seed=None)
    return {
        "config": to_dict(config),
        "classes": classes,
        "images": [],  # it was trained elsewhere
        "mean": 255 * torch.tensor(MEAN).reshape(1, 1, 3),
        "progress": vars(Progress()),
        "network": convert(published, network),
    }


def main() -> None:
    """Convert the file that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("weights", type=Path, help="torchvision's state dict, a .pth file")
    parser.add_argument("--data", required=True, metavar="ROOT", help="ImageNet, for its classes")
    parser.add_argument("--out", type=Path, help="default: runs/MODEL-torchvision/MODEL.pt")
    options = parser.parse_args()
    with one_sentence():
        classes = scan_folder(options.data, "val").classes
        if len(classes) != NUM_CLASSES:
            raise UserError(f"{options.data} has {len(classes):,} classes, not ImageNet's 1,000")
        with refusing(Exception, what=f"cannot read {options.weights} as a state dict"):
            published = torch.load(options.weights, map_location="cpu", weights_only=True)
        state = checkpoint(options.model, published, classes, options.data)
        out = options.out or Path("runs") / f"{options.model}-torchvision" / f"{options.model}.pt"
        with refusing(OSError, what=f"cannot write {out}"):
            out.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(out, state)
        print(f"written: {out}; test it: python eval.py checkpoint={out} views=centre")


if __name__ == "__main__":
    main()
