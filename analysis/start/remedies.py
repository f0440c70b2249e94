"""Ways to keep the first steps from diverging, compared by the study on the same batches."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

LETTER, DEFAULT = "letter", "default"


def _whole_rate(step: int) -> float:
    return 1.0


@dataclass(frozen=True)
class Remedy:
    """What is changed in the paper's recipe."""

    title: str
    overrides: list[str] = field(default_factory=list)  # keys of train.py
    share: Callable[[int], float] = _whole_rate  # of the rate, at step s = 1, 2, ...
    end_to_end: float = 1.0  # factor of all weight layers together, c^(1/L) in each (Sec. 2.2)


_OFF = "max_gradient_norm=null"

REMEDIES = {
    LETTER: Remedy("the paper to the letter", [_OFF]),
    DEFAULT: Remedy("gradient clipped (default)"),
    "clip1": Remedy("gradient clipped at 1", ["max_gradient_norm=1"]),
    "clip5": Remedy("gradient clipped at 5", ["max_gradient_norm=5"]),
    "warmup": Remedy("rate warmed up over 100 steps", [_OFF], lambda s: min(1, s / 100)),
    "low": Remedy("a tenth of the rate for 100 steps", [_OFF], lambda s: 0.1 if s <= 100 else 1),
    "factor": Remedy("all weights times (1/128)^(1/L)", [_OFF], end_to_end=1 / 128),
    "fc_std": Remedy("half the std of fc1 and fc2", [_OFF, "init.fc_std=[0.005,0.005,0.001]"]),
}


@torch.no_grad()
def scale_weights(network: nn.Module, remedy: Remedy) -> None:
    """Apply the remedy's factor to freshly drawn weights."""
    if remedy.end_to_end != 1:
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        for layer in layers:
            layer.weight.mul_(remedy.end_to_end ** (1 / len(layers)))
