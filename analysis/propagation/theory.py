"""Signal propagation (Sec. 2.2): variances by layer, in closed form (Eq. 9, 13) and measured.

Forward is Var[y_l], the output of convolution l before its rectifier, for an input of variance 1.
Backward is Var[dx_l], the gradient at its input, for a gradient of variance 1 at x_{L+1}, the last
rectifier's output. As in the paper there is no dx_1, and the fc layers are left out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from models.network import IMAGE_CHANNELS, build_network, convs_per_stage

if TYPE_CHECKING:
    from configs.schema import ActConfig, InitConfig, ModelConfig

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Conv:
    """A convolution and the max-pool after it, as the architecture table has them."""

    name: str
    kernel: int
    channels: int  # c, of its input
    filters: int  # d
    stride: int
    pad: int
    pool: int  # side of the max-pool behind its rectifier; 0: none
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


def conv_table(model: "ModelConfig") -> list[Conv]:
    """The convolutions of an architecture, in order."""
    table: list[Conv] = []
    channels = IMAGE_CHANNELS
    for s, (stage, count) in enumerate(zip(model.stages, convs_per_stage(model), strict=True), 1):
        for i in range(count):
            name = f"conv{s}" if count == 1 else f"conv{s}_{i + 1}"
            stride = stage.stride if i == 0 else 1
            pool = stage.pool if i == count - 1 else 0
            pad, step = stage.pad[i % len(stage.pad)], stage.pool_stride
            table.append(Conv(name, stage.kernel, channels, stage.filters, stride, pad, pool, step))
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
    forward = _products(gain(slope) * n * var_w) / gain(slope)
    backward = _products((gain(slope) * n_hat * var_w)[::-1])[::-1].copy()
    backward[0] = np.nan
    return Curves(forward, backward)


def _products(factors: Floats) -> Floats:
    """Along the last axis: of the first factor, the first two, ..."""
    return np.asarray(np.cumprod(factors, axis=-1), dtype=np.float64)


def borders(table: Sequence[Conv], crop: int) -> Signals:
    """Factors by which borders change Eq. 9 and 13 for crop x crop images, as arrays [L].

    A window that reaches into the zero padding has fewer than n inputs, a position near the border
    fewer than n_hat outputs. Averages over all positions of the exact recursion, with pools that
    would only average. They are the same for every rule and slope.
    """
    shares: dict[str, list[Tensor]] = {"x": [], "y": [], "dx": [], "dy": []}
    share = torch.ones(1, 1, crop, crop, dtype=torch.float64)
    for conv in table:
        shares["x"].append(share)
        share = F.conv2d(share, _box(conv.kernel, mean=True), None, conv.stride, conv.pad)
        shares["y"].append(share)
        if conv.pool:
            share = F.avg_pool2d(share, conv.pool, conv.pool_stride)
    share = torch.ones_like(shares["y"][-1])
    for i in reversed(range(len(table))):
        conv, above = table[i], i + 1 < len(table)
        if conv.pool and above:  # each position of a window gets what the pooled one has
            box, shape = _box(conv.pool, mean=False), shares["y"][i].shape
            share = conv2d_input(shape, box, share, conv.pool_stride)
        shares["dy"].append(share)
        box, shape = _box(conv.kernel, mean=True), shares["x"][i].shape
        share = conv2d_input(shape, box, share, conv.stride, conv.pad)
        shares["dx"].append(share if i else torch.tensor(torch.nan))
    means = {name: [m.mean().item() for m in maps] for name, maps in shares.items()}
    up, down = (means["x"], means["y"]), (means["dx"][::-1], means["dy"][::-1])
    return Signals(*(np.array(values) for values in (*up, *down)))


def _box(side: int, *, mean: bool) -> Tensor:
    box = torch.ones(1, 1, side, side, dtype=torch.float64)
    return box / side**2 if mean else box


def pools(table: Sequence[Conv], signals: Signals, shares: Signals, slope: float) -> Curves:
    """Factors by which max-pools changed Eq. 9 and 13 up to each layer, measured: [seeds, L].

    Where a pool follows a rectifier, both together take the place of the factor 1/2 (1 + a^2).
    shares: what borders make of the same step, so that it does not count twice.
    """
    pooled = np.array([conv.pool > 0 for conv in table[:-1]])
    up_share, down_share = shares.x[1:] / shares.y[:-1], shares.dy[:-1] / shares.dx[1:]
    up = signals.x[:, 1:] / signals.y[:, :-1] / up_share / gain(slope)
    down = signals.dy[:, :-1] / signals.dx[:, 1:] / down_share / gain(slope)
    up, down = np.where(pooled, up, 1), np.where(pooled, down, 1)
    one = np.ones((len(up), 1))
    forward = _products(np.hstack([one, up]))
    # At dx_l count the pools above layer l: those behind layers l .. L-1.
    backward = _products(np.hstack([down, one])[:, ::-1])[:, ::-1].copy()
    backward[:, 0] = np.nan
    return Curves(forward, backward)


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
    negative = 0.5**count  # all responses of the window
    passed = 1 - negative + slope**2 * negative
    return mean_square / gain(slope), passed / stride**2 / gain(slope)


def measure(
    model: "ModelConfig",
    act: "ActConfig",
    init: "InitConfig",
    crop: int,
    batch: int,
    seeds: Sequence[int],
    on_seed: Callable[[], object] = lambda: None,
) -> Signals:
    """Run Gaussian images up, and a Gaussian gradient down, the network of each seed.

    A seed's images [batch, 3, crop, crop], gradient and weights, up to their scale, are the same
    for every act and init.
    """
    passes = []
    for seed in seeds:
        passes.append(_one_pass(_convolutions(model, act, init, seed), crop, batch, seed))
        on_seed()
    return Signals(*np.stack(passes, axis=1))


def _convolutions(
    model: "ModelConfig", act: "ActConfig", init: "InitConfig", seed: int
) -> nn.Sequential:
    """The trunk from conv1 to the last rectifier: images have variance 1, there is no last pool."""
    trunk = build_network(replace(model, fc=[1, 1]), act, init, num_classes=1, seed=seed).trunk
    assert isinstance(trunk, nn.Sequential)
    convs = [i for i, layer in enumerate(trunk) if isinstance(layer, nn.Conv2d)]
    layers = trunk[convs[0] : convs[-1] + 2].requires_grad_(False)
    return cast("nn.Sequential", layers.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def _one_pass(layers: nn.Sequential, crop: int, batch: int, seed: int) -> Floats:
    """x, y, dx, dy of each convolution: [4, L]."""
    # Not a number that seeds a layer's weights (models/init.py).
    generator = torch.Generator().manual_seed((seed << 16) + 0xFFFF)
    x = torch.randn(batch, IMAGE_CHANNELS, crop, crop, generator=generator)
    x = x.to(memory_format=torch.channels_last)
    num_convs = sum(isinstance(layer, nn.Conv2d) for layer in layers)
    found = np.full((4, num_convs), np.nan)

    def note(quantity: int, place: int) -> Callable[[Tensor], None]:
        def hook(values: Tensor) -> None:
            found[quantity, place] = _mean_square(values)

        return hook

    place = 0
    for layer in layers:
        y = layer(x)
        if isinstance(layer, nn.Conv2d):
            note(0, place)(x)
            note(1, place)(y)
            if place == 0:
                y.requires_grad_()  # the graph begins here: there is no dx_1
            else:
                x.register_hook(note(2, place))
            y.register_hook(note(3, place))
            place += 1
        x = y
    x.backward(torch.randn(x.shape, generator=generator))
    return found


def _mean_square(values: Tensor) -> float:
    """In float64: with std 0.01 the squares of 30 layers come near the end of float32's range."""
    norm = torch.linalg.vector_norm(values.detach(), dtype=torch.float64)
    return norm.item() ** 2 / values.numel()
