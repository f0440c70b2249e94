"""Recipes that may keep the first steps from diverging, compared on the same batches."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

LETTER, DEFAULT = "letter", "default"


@dataclass(frozen=True)
class Remedy:
    """A change to the paper's recipe."""

    title: str
    overrides: list[str] = field(default_factory=list)  # keys of train.py
    rate_factor: Callable[[int], float] = lambda _step: 1.0  # of step 1, 2, ...
    weight_factor: float = 1.0  # c of all L weight layers together, c^(1/L) in each (Sec. 2.2)
    input_factor: float = 1.0  # on what conv1 gets


_OFF = ["clip_norm=null"]

REMEDIES = {
    LETTER: Remedy("the paper to the letter", _OFF),
    DEFAULT: Remedy("gradient clipped at a norm of 1 (default)"),
    "clip05": Remedy("gradient clipped at a norm of 0.5", ["clip_norm=0.5"]),
    "clip2": Remedy("gradient clipped at a norm of 2", ["clip_norm=2"]),
    "clip5": Remedy("gradient clipped at a norm of 5", ["clip_norm=5"]),
    "warmup": Remedy("rate warmed up over 100 steps", _OFF, lambda s: min(1.0, s / 100)),
    "low": Remedy("a tenth of the rate for 100 steps", _OFF, lambda s: 0.1 if s <= 100 else 1.0),
    "inputs8": Remedy("inputs divided by 8", _OFF, input_factor=1 / 8),
    "inputs32": Remedy("inputs divided by 32", _OFF, input_factor=1 / 32),
    "factor8": Remedy("all weights times (1/8)^(1/L)", _OFF, weight_factor=1 / 8),
    "factor128": Remedy("all weights times (1/128)^(1/L)", _OFF, weight_factor=1 / 128),
    "fc_std": Remedy("half the std of fc1 and fc2", [*_OFF, "init.fc_std=[0.005,0.005,0.001]"]),
}


@torch.no_grad()
def scale_weights(network: nn.Module, factor: float) -> None:
    """Multiply the freshly drawn weights of L layers by factor^(1/L) each."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        layer.weight.mul_(factor ** (1 / len(layers)))


def scale_inputs(network: nn.Module, factor: float) -> None:
    """Multiply what the network is given by `factor`."""
    network.register_forward_pre_hook(lambda _module, args: (args[0] * factor, *args[1:]))
