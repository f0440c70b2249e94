"""Signal propagation as measured: random images up, and a random gradient down, real networks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from analysis.propagation.theory import Floats, Signals, convolutions
from configs.schema import TrainConfig
from models.architecture import IMAGE_CHANNELS


def measure(config: TrainConfig, *, crop: int, batch: int, seeds: Sequence[int]) -> Signals:
    """Mean squares at each convolution, [seeds, L].

    Images [batch, 3, crop, crop] and the gradient behind the last rectifier are Gaussian noise of
    variance 1. For one seed they are the same for every act and init, and so are the weights up to
    their scale.
    """
    passes = []
    for seed in seeds:
        layers = convolutions(config, seed).requires_grad_(False)
        layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        passes.append(_one_pass(layers, crop, batch, seed))
    return Signals(*np.stack(passes, axis=1))


def _one_pass(layers: nn.Sequential, crop: int, batch: int, seed: int) -> Floats:
    """Mean squares of x, y, dx, dy at each convolution: [4, L]."""
    # Not a number that seeds a layer's weights (models/init.py).
    generator = torch.Generator().manual_seed((seed << 16) + 0xFFFF)
    x = torch.randn(batch, IMAGE_CHANNELS, crop, crop, generator=generator)
    x = x.to(memory_format=torch.channels_last)
    inputs, outputs = list[Tensor](), list[Tensor]()
    for layer in layers:
        y = layer(x)
        if isinstance(layer, nn.Conv2d):
            if inputs:
                x.retain_grad()
            else:
                y.requires_grad_()  # the graph begins here: there is no dx_1
            y.retain_grad()
            inputs.append(x)
            outputs.append(y)
        x = y
    x.backward(torch.randn(x.shape, generator=generator))
    maps = (inputs, outputs, [x.grad for x in inputs], [y.grad for y in outputs])
    return np.array([[_mean_square(values) for values in row] for row in maps])


def _mean_square(values: Tensor | None) -> float:
    """In float64: with std 0.01 the squares of 30 layers come near the end of float32's range."""
    if values is None:
        return float("nan")
    norm = torch.linalg.vector_norm(values.detach(), dtype=torch.float64)
    return norm.item() ** 2 / values.numel()
