"""torch.hub: `torch.hub.load(FOLDER, "a", source="local", checkpoint="best.pt")`.

Each name is a model, and gives a module from uint8 RGB images [B, crop, crop, 3] to probabilities
[B, classes]; its `.classes` are their names.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.classifier import Classifier

dependencies = ["torch", "numpy", "omegaconf", "hydra"]


def _load(model: str, checkpoint: str) -> "Classifier":
    """Raises ValueError if the checkpoint is of another model."""
    from evaluation.classifier import load_classifier

    classifier = load_classifier(Path(checkpoint))
    if classifier.name != model:
        raise ValueError(f"{checkpoint} is a checkpoint of model {classifier.name}, not {model}")
    return classifier


def small14(checkpoint: str) -> "Classifier":
    """The 14-layer model of Table 1."""
    return _load("small14", checkpoint)


def small30(checkpoint: str) -> "Classifier":
    """The 30-layer model of Fig. 3."""
    return _load("small30", checkpoint)


def a(checkpoint: str) -> "Classifier":
    """Model A of Table 3."""
    return _load("A", checkpoint)


def b(checkpoint: str) -> "Classifier":
    """Model B of Table 3."""
    return _load("B", checkpoint)


def c(checkpoint: str) -> "Classifier":
    """Model C of Table 3."""
    return _load("C", checkpoint)


def vgg19(checkpoint: str) -> "Classifier":
    """VGG-19, such as scripts/import_weights.py makes of published weights."""
    return _load("vgg19", checkpoint)
