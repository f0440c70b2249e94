"""Signal propagation (Sec. 2.2) in closed form: variances by layer (Eq. 9, 13), borders and pools.

Forward is Var[y_l], the output of convolution l before its rectifier, for an input of variance 1.
Backward is Var[dx_l], the gradient at its input, for a gradient of variance 1 at x_{L+1}, the last
rectifier's output. As in the paper there is no dx_1, and the fc layers are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from configs.schema import TrainConfig
from models.architecture import ConvLayer, PoolLayer, trunk_layers
from models.init import conv_std, initialise
from models.network import build_trunk

Floats = NDArray[np.float64]


class Direction(IntEnum):
    """The first axis of arrays [2, ..., L]; [BACKWARD, ..., 0] is nan."""

    FORWARD = 0
    BACKWARD = 1


FORWARD, BACKWARD = Direction


@dataclass
class Conv:
    """A convolution, the initial std of its weights, and the max-pool after it, if any."""

    layer: ConvLayer
    std: float
    pool: PoolLayer | None = None


@dataclass(frozen=True)
class Signals:
    """Mean squares at each convolution, [seeds, L]: x its input, y its output."""

    x: Floats
    y: Floats
    dx: Floats  # nan for the first, which has no gradient at its input
    dy: Floats

    def variances(self) -> Floats:
        """What Eq. 9 and 13 predict, [2, seeds, L]. Mean squares are variances, as E[w] = 0."""
        return np.stack([self.y, self.dx])


def convolutions(config: TrainConfig, seed: int | None = None) -> nn.Sequential:
    """The trunk of train.py's network, from conv1 to the last rectifier; a pool after it is cut.

    seed None: the weights stay uninitialised.
    """
    trunk = build_trunk(config.model, config.act)
    if seed is not None:
        initialise(trunk, config.init, config.act, seed)
    return trunk[:-1] if isinstance(trunk[-1], nn.MaxPool2d) else trunk


def conv_table(config: TrainConfig) -> list[Conv]:
    """The convolutions of a network, in order, as `convolutions` builds them."""
    table: list[Conv] = []
    layers = trunk_layers(config.model)
    for place, layer in enumerate(layers, 1):
        if isinstance(layer, ConvLayer):
            std = conv_std(layer.fan_in, layer.fan_out, config.init, config.act.slope)
            table.append(Conv(layer, std))
        elif place < len(layers):
            table[-1].pool = layer
    return table


def gain(slope: float) -> float:
    """1/2 (1 + a^2): what a rectifier leaves of a zero-mean signal's mean square (Eq. 8, 15)."""
    return (1 + slope**2) / 2


def predict(table: Sequence[Conv], stds: Sequence[float], slope: float) -> Floats:
    """Var[y_l] by Eq. 9 and Var[dx_l] by Eq. 13, with Eq. 15's factor for the slope a: [2, L].

    stds: of each layer's weights. Var[y_1] is n_1 Var[w_1], as no rectifier precedes conv1.
    """
    var_w = gain(slope) * np.square(np.array(stds, dtype=np.float64))
    layers = [conv.layer for conv in table]
    n, n_hat = np.array([(layer.fan_in, layer.fan_out) for layer in layers]).T
    forward = np.asarray(np.cumprod(n * var_w) / gain(slope))
    return np.stack([forward, _from_above(n_hat * var_w)])


def _from_above(factors: Floats) -> Floats:
    """Products of the factors of layers l .. L, [..., L]; nan for l = 1, which has no dx."""
    products = np.array(np.cumprod(factors[..., ::-1], axis=-1)[..., ::-1], dtype=np.float64)
    products[..., 0] = np.nan
    return products


def borders(table: Sequence[Conv], crop: int) -> Signals:
    """Factors by which borders change Eq. 9 and 13 for crop x crop images, as arrays [L].

    A window that reaches into the zero padding has fewer than n inputs, a position near the border
    fewer than n_hat outputs. The factors are means over all positions of the exact recursion, with
    pools that only average. They are the same for every initialisation and slope.
    """
    x, y, dx, dy = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    factor = torch.ones(1, 1, crop, crop, dtype=torch.float64)
    for conv in table:
        x.append(factor)
        mean = _mean_filter(conv.layer.kernel)
        factor = F.conv2d(factor, mean, None, conv.layer.stride, conv.layer.pad)
        y.append(factor)
        if conv.pool:
            factor = F.avg_pool2d(factor, conv.pool.kernel, conv.pool.stride)
    factor = torch.ones_like(factor)
    for i, conv in reversed(list(enumerate(table))):
        if conv.pool:  # each position of a window gets the pooled gradient
            side = conv.pool.kernel
            window = side**2 * _mean_filter(side)
            factor = conv2d_input(y[i].shape, window, factor, conv.pool.stride)
        dy.insert(0, factor)
        mean = _mean_filter(conv.layer.kernel)
        factor = conv2d_input(x[i].shape, mean, factor, conv.layer.stride, conv.layer.pad)
        dx.insert(0, factor if i else torch.tensor(torch.nan))
    return Signals(*(np.array([m.mean().item() for m in maps]) for maps in (x, y, dx, dy)))


def _mean_filter(side: int) -> Tensor:
    return torch.full((1, 1, side, side), 1 / side**2, dtype=torch.float64)


def pools(table: Sequence[Conv], signals: Signals, edges: Signals, slope: float) -> Floats:
    """Factors by which max-pools changed Eq. 9 and 13 up to each layer, measured: [2, seeds, L].

    Where a pool follows a rectifier, both together take the place of the factor 1/2 (1 + a^2).
    edges: the factors of `borders` for the same step, which must not count twice.
    """
    pooled = [conv.pool is not None for conv in table[:-1]]
    up = signals.x[:, 1:] / signals.y[:, :-1] / (edges.x[1:] / edges.y[:-1]) / gain(slope)
    down = signals.dy[:, :-1] / signals.dx[:, 1:] / (edges.dy[:-1] / edges.dx[1:]) / gain(slope)
    ones = np.ones((len(up), 1))
    forward = np.cumprod(np.hstack([ones, np.where(pooled, up, 1)]), axis=1)
    # dx_l has passed the pools after layers l .. L-1.
    return np.stack([forward, _from_above(np.hstack([np.where(pooled, down, 1), ones]))])
