"""Signal propagation (Sec. 2.2) in closed form: variances by layer (Eq. 9, 13), borders and pools.

Forward is Var[y_l], the output of convolution l before its rectifier, for an input of variance 1.
Backward is Var[dx_l], the gradient at its input, for a gradient of variance 1 at x_{L+1}, the last
rectifier's output. As in the paper there is no dx_1, and the fc layers are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.grad import conv2d_input

from configs.schema import ModelConfig
from models.network import IMAGE_CHANNELS, convs_per_stage

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Conv:
    """A convolution and the max-pool after it."""

    name: str
    kernel: int
    channels: int  # c, of its input
    filters: int  # d
    stride: int
    pad: int
    pool: int  # side of the max-pool after its rectifier; 0: none
    pool_stride: int  # unused without a pool

    @property
    def n(self) -> int:
        """Connections of a response: k * k * c."""
        return self.kernel**2 * self.channels

    @property
    def n_hat(self) -> int:
        """Connections of an input: k * k * d."""
        return self.kernel**2 * self.filters


@dataclass(frozen=True)
class Curves:
    """A number for each layer l = 1 .. L, as arrays [L] or [seeds, L]; backward[..., 0] is nan."""

    forward: Floats
    backward: Floats

    def __getitem__(self, direction: str) -> Floats:
        """The array of "forward" or "backward"."""
        return {"forward": self.forward, "backward": self.backward}[direction]


@dataclass(frozen=True)
class Signals:
    """Mean squares at each convolution, [seeds, L]: x its input, y its output."""

    x: Floats
    y: Floats
    dx: Floats  # nan for the first, which has no gradient at its input
    dy: Floats

    def curves(self) -> Curves:
        """What Eq. 9 and 13 predict. The mean square is the variance, as E[w] = 0."""
        return Curves(self.y, self.dx)


def conv_table(model: ModelConfig) -> list[Conv]:
    """The convolutions of an architecture, in order."""
    table: list[Conv] = []
    channels = IMAGE_CHANNELS
    for s, (stage, count) in enumerate(zip(model.stages, convs_per_stage(model), strict=True), 1):
        for i in range(count):
            conv = Conv(
                name=f"conv{s}" if count == 1 else f"conv{s}_{i + 1}",
                kernel=stage.kernel,
                channels=channels,
                filters=stage.filters,
                stride=stage.stride if i == 0 else 1,
                pad=stage.pad[i % len(stage.pad)],
                pool=stage.pool if i == count - 1 else 0,
                pool_stride=stage.pool_stride,
            )
            table.append(conv)
            channels = stage.filters
    return table


def gain(slope: float) -> float:
    """1/2 (1 + a^2): what a rectifier leaves of a zero-mean signal's mean square (Eq. 8, 15)."""
    return (1 + slope**2) / 2


def predict(table: Sequence[Conv], stds: Sequence[float], slope: float) -> Curves:
    """Var[y_l] by Eq. 9 and Var[dx_l] by Eq. 13, with Eq. 15's factor for the slope a.

    stds: of each layer's weights. Var[y_1] is n_1 Var[w_1], as no rectifier precedes conv1.
    """
    var_w: Floats = np.square(np.array(stds, dtype=np.float64))
    n, n_hat = np.array([conv.n for conv in table]), np.array([conv.n_hat for conv in table])
    forward = np.asarray(np.cumprod(gain(slope) * n * var_w) / gain(slope), dtype=np.float64)
    return Curves(forward, _from_above(gain(slope) * n_hat * var_w))


def _from_above(factors: Floats) -> Floats:
    """Products of the factors of layers l .. L, [..., L]; nan for l = 1, which has no dx."""
    products = np.cumprod(factors[..., ::-1], axis=-1)[..., ::-1].copy()
    products[..., 0] = np.nan
    return np.asarray(products, dtype=np.float64)


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
        factor = F.conv2d(factor, _mean_filter(conv.kernel), None, conv.stride, conv.pad)
        y.append(factor)
        if conv.pool:
            factor = F.avg_pool2d(factor, conv.pool, conv.pool_stride)
    factor = torch.ones_like(y[-1])
    for i, conv in reversed(list(enumerate(table))):
        if conv.pool and i + 1 < len(table):  # each position of a window gets the pooled gradient
            window = conv.pool**2 * _mean_filter(conv.pool)
            factor = conv2d_input(y[i].shape, window, factor, conv.pool_stride)
        dy.insert(0, factor)
        factor = conv2d_input(x[i].shape, _mean_filter(conv.kernel), factor, conv.stride, conv.pad)
        dx.insert(0, factor if i else torch.tensor(torch.nan))
    return Signals(*(np.array([m.mean().item() for m in maps]) for maps in (x, y, dx, dy)))


def _mean_filter(side: int) -> Tensor:
    return torch.full((1, 1, side, side), 1 / side**2, dtype=torch.float64)


def pools(table: Sequence[Conv], signals: Signals, edges: Signals, slope: float) -> Curves:
    """Factors by which max-pools changed Eq. 9 and 13 up to each layer, measured: [seeds, L].

    Where a pool follows a rectifier, both together take the place of the factor 1/2 (1 + a^2).
    edges: the factors of `borders` for the same step, which must not count twice.
    """
    pooled = np.array([conv.pool > 0 for conv in table[:-1]])
    up = signals.x[:, 1:] / signals.y[:, :-1] / (edges.x[1:] / edges.y[:-1]) / gain(slope)
    down = signals.dy[:, :-1] / signals.dx[:, 1:] / (edges.dy[:-1] / edges.dx[1:]) / gain(slope)
    ones = np.ones((len(up), 1))
    forward = np.cumprod(np.hstack([ones, np.where(pooled, up, 1)]), axis=1)
    # dx_l has passed the pools after layers l .. L-1.
    return Curves(forward, _from_above(np.hstack([np.where(pooled, down, 1), ones])))


def pool_of_independent(side: int, stride: int, slope: float) -> tuple[float, float]:
    """The factors of `pools` for a window of side * side independent Gaussian responses.

    Up: the mean square that the rectifier leaves of the largest response, over that of any one.
    Down: one position of stride * stride gets the gradient, times f'(largest response)^2. Both
    have Eq. 8's 1/2 (1 + a^2) taken out.
    """
    count = side**2
    y = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    density = count * torch.exp(-(y**2) / 2) / math.sqrt(2 * math.pi)
    density *= torch.special.ndtr(y) ** (count - 1)  # of the largest of `count` responses
    rectified = torch.where(y > 0, y, slope * y)
    mean_square = torch.trapezoid(density * rectified**2, y).item()
    negative = 0.5**count  # probability that no response of the window is positive
    passed = 1 - negative + slope**2 * negative
    return mean_square / gain(slope), passed / stride**2 / gain(slope)
