"""Signal propagation (Sec. 2.2) in closed form: variances by layer (Eq. 9, 13), and borders.

Forward is Var[y_l], the output of convolution l before its rectifier, for an input of variance 1.
Backward is Var[dx_l], the gradient at its input, for a gradient of variance 1 at x_{L+1}, the last
rectifier's output. As in the paper there is no dx_1, and the fc layers are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import TrainConfig
from models.architecture import ConvLayer, PoolLayer, trunk_layers
from models.init import conv_std

Floats = NDArray[np.float64]

FORWARD, BACKWARD = 0, 1  # the first axis of arrays [2, ..., L]; [BACKWARD, ..., 0] is nan


@dataclass
class Conv:
    """A convolution, the initial std of its weights, and the max-pool after it, if any."""

    layer: ConvLayer
    std: float
    pool: PoolLayer | None = None


@dataclass(frozen=True)
class Signals:
    """Mean squares at each convolution: x is its input, y its output."""

    x: Floats
    y: Floats
    dx: Floats  # nan for the first convolution
    dy: Floats

    def variances(self) -> Floats:
        """Var[y_l] and Var[dx_l], [2, ..., L]: mean squares are variances here, as E[w] = 0."""
        return np.stack([self.y, self.dx])

    def passed(self) -> Floats:
        """What each rectifier, with any pool behind it, leaves of mean squares: [2, ..., L-1]."""
        return np.stack([self.x[..., 1:] / self.y[..., :-1], self.dy[..., :-1] / self.dx[..., 1:]])


def conv_table(config: TrainConfig) -> list[Conv]:
    """The convolutions of a network, in order; a pool after the last one is left out."""
    table: list[Conv] = []
    for layer in trunk_layers(config.model):
        if isinstance(layer, ConvLayer):
            std = conv_std(layer.fan_in, layer.fan_out, config.init, config.act.slope)
            table.append(Conv(layer, std))
        else:
            table[-1].pool = layer
    table[-1].pool = None
    return table


def gain(slope: float) -> float:
    """1/2 (1 + a^2): what a rectifier leaves of a zero-mean signal's mean square (Eq. 8, 15)."""
    return (1 + slope**2) / 2


def predict(table: Sequence[Conv], slope: float) -> Floats:
    """Var[y_l] by Eq. 9 and Var[dx_l] by Eq. 13, with Eq. 15's factor for the slope a: [2, L].

    Var[y_1] is n_1 Var[w_1], as no rectifier precedes conv1.
    """
    n = np.array([conv.layer.fan_in for conv in table])
    n_hat = np.array([conv.layer.fan_out for conv in table])
    var_w = np.square([conv.std for conv in table])
    forward = np.cumprod(gain(slope) * n * var_w) / gain(slope)
    return np.stack([forward, products_from_above(gain(slope) * n_hat * var_w)])


def products_from_above(factors: Floats) -> Floats:
    """Products of the factors of layers l to L, [..., L]; nan for l = 1, as there is no dx_1."""
    products = np.array(np.cumprod(factors[..., ::-1], axis=-1)[..., ::-1], dtype=np.float64)
    products[..., 0] = np.nan
    return products


def borders(table: Sequence[Conv], crop: int) -> Signals:
    """Factors by which borders change Eq. 9 and 13 for crop x crop images, as arrays [L].

    A window that reaches into the zero padding has fewer than n inputs, and a position near the
    border feeds fewer than n_hat outputs. The factors are means over all positions of the exact
    recursion, with pools that only average. They do not depend on initialisation or slope.
    """
    inputs, outputs = list[Tensor](), list[Tensor]()
    factor = torch.ones(1, 1, crop, crop, dtype=torch.float64, requires_grad=True)
    for conv in table:
        inputs.append(factor)
        side = conv.layer.kernel
        mean_filter = torch.full((1, 1, side, side), 1 / side**2, dtype=torch.float64)
        factor = F.conv2d(factor, mean_filter, None, conv.layer.stride, conv.layer.pad)
        outputs.append(factor)
        if conv.pool:
            factor = F.avg_pool2d(factor, conv.pool.kernel, conv.pool.stride)
    gradients = torch.autograd.grad(factor.sum(), inputs + outputs)
    means = np.array([values.mean().item() for values in (*inputs, *outputs, *gradients)])
    x, y, dx, dy = means.reshape(4, -1)
    dx[0] = np.nan
    # autograd divides a pooled gradient among its window, but each position is to get all of it.
    windows = [conv.pool.kernel**2 if conv.pool else 1 for conv in table]
    above = np.cumprod(windows[::-1])[::-1]
    return Signals(x, y, dx * above, dy * above)
