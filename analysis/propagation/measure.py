"""Signal propagation as measured: random images and a random gradient go through networks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from analysis.propagation.theory import Conv, Floats, Signals, gain, products_from_above
from configs.schema import TrainConfig
from models.architecture import IMAGE_CHANNELS
from models.init import initialise
from models.network import build_trunk


def convolutions(config: TrainConfig, seed: int) -> nn.Sequential:
    """The trunk of train.py's network, initialised; a pool after the last rectifier is cut."""
    trunk = build_trunk(config.model, config.act)
    initialise(trunk, config.init, config.act, seed)
    return trunk[:-1] if isinstance(trunk[-1], nn.MaxPool2d) else trunk


def measure(config: TrainConfig, *, crop: int, batch: int, seeds: Sequence[int]) -> Signals:
    """Mean squares at each convolution, [seeds, L].

    Images [batch, 3, crop, crop] and the gradient behind the last rectifier are Gaussian noise of
    variance 1. For one seed they are the same for every act and init, and so are the weights up to
    their scale.
    """
    passes = []
    for seed in seeds:
        # Not a number that seeds a layer's weights (models/init.py).
        generator = torch.Generator().manual_seed((seed << 16) + 0xFFFF)
        images = torch.randn(batch, IMAGE_CHANNELS, crop, crop, generator=generator)
        images = images.to(memory_format=torch.channels_last)
        passes.append(_one_pass(convolutions(config, seed), images, generator))
    return Signals(*np.stack(passes, axis=1))


def _one_pass(layers: nn.Sequential, images: Tensor, generator: torch.Generator) -> Floats:
    """Mean squares of x, y, dx, dy at each convolution: [4, L]."""
    x = images.requires_grad_()
    inputs, outputs = list[Tensor](), list[Tensor]()
    for layer in layers:
        y = layer(x)
        if isinstance(layer, nn.Conv2d):
            inputs.append(x)
            outputs.append(y)
        x = y
    gradient = torch.randn(x.shape, generator=generator)
    gradients = torch.autograd.grad(x, inputs + outputs, gradient)
    squares = [_mean_square(values) for values in (*inputs, *outputs, *gradients)]
    rows = np.reshape(squares, (4, -1))
    rows[2, 0] = np.nan  # there is no dx_1
    return rows


def _mean_square(values: Tensor) -> float:
    """In float64: with std 0.01 the squares of 30 layers come near the end of float32's range."""
    norm = torch.linalg.vector_norm(values.detach(), dtype=torch.float64)
    return norm.item() ** 2 / values.numel()


def pools(table: Sequence[Conv], signals: Signals, at_borders: Signals, slope: float) -> Floats:
    """Factors by which max-pools changed Eq. 9 and 13 up to each layer, measured: [2, seeds, L].

    A rectifier and the pool behind it together take the place of the factor 1/2 (1 + a^2).
    at_borders: the factors of `borders`, which must not count twice.
    """
    has_pool = [conv.pool is not None for conv in table[:-1]]
    passed = signals.passed() / at_borders.passed()[:, None] / gain(slope)
    up, down = np.where(has_pool, passed, 1)
    ones = np.ones((len(up), 1))
    forward = np.cumprod(np.hstack([ones, up]), axis=1)
    # dx_l has passed the pools after layers l to L-1.
    return np.stack([forward, products_from_above(np.hstack([down, ones]))])
