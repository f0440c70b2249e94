"""Builds any architecture of configs/model/: trunk (convolutions), spp, head (fc layers)."""

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from models.activations import PReLU, Rectifier, build_rectifier
from models.dropout import Dropout
from models.init import initialise
from models.spp import SpatialPyramidPooling

if TYPE_CHECKING:
    from configs.schema import ActConfig, InitConfig, ModelConfig

IMAGE_CHANNELS = 3


def rectified(
    layer: nn.Conv2d | nn.Linear,
    rectifier: Rectifier,
    x: Tensor,
    dropout: Dropout | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """dropout(rectifier(layer(x)), keys); all after the product in one kernel where chosen."""
    if rectifier.fused:
        from models import kernels  # imports Triton

        if kernels.run_on(x):
            if isinstance(layer, nn.Conv2d):
                product = F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
            else:
                product = F.linear(x, layer.weight)
            assert layer.bias is not None
            slopes = rectifier.slopes if isinstance(rectifier, PReLU) else rectifier.slope
            return kernels.rectify(product, layer.bias, slopes, dropout, keys)
    y = rectifier(layer(x))
    return y if dropout is None else dropout(y, keys)


class Trunk(nn.Sequential):
    """Convolutions, each followed by its rectifier, and pools."""

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, h, w]."""
        x, layers = images, iter(self)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                x = rectified(layer, cast(Rectifier, next(layers)), x)
            else:
                x = layer(x)
        return x


class Head(nn.Module):
    """fc1 and fc2, each with rectifier and dropout, and fc3: bin features -> logits."""

    def __init__(
        self, num_features: int, widths: list[int], num_classes: int, act: "ActConfig", drop: float
    ) -> None:
        super().__init__()
        width1, width2 = widths
        self.fc1 = nn.Linear(num_features, width1)
        self.rect1 = build_rectifier(act, width1)
        self.drop1 = Dropout(drop, 1, width1)
        self.fc2 = nn.Linear(width1, width2)
        self.rect2 = build_rectifier(act, width2)
        self.drop2 = Dropout(drop, 2, width2)
        self.fc3 = nn.Linear(width2, num_classes)  # no rectifier after the last layer (Sec. 2.1)

    def forward(self, features: Tensor, keys: Tensor | None = None) -> Tensor:
        """features [B, C * bins] -> logits [B, classes]; keys as in Network.forward."""
        x = rectified(self.fc1, self.rect1, features, self.drop1, keys)
        x = rectified(self.fc2, self.rect2, x, self.drop2, keys)
        return self.fc3(x)


class Network(nn.Module):
    """One of the paper's networks. Its parts can be used apart: head(spp(trunk(images)))."""

    def __init__(self, trunk: nn.Module, spp: SpatialPyramidPooling, head: Head) -> None:
        super().__init__()
        self.trunk, self.spp, self.head = trunk, spp, head

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """images [B, 3, H, W], pixel values less their mean -> logits [B, classes].

        keys: int64 [B], each sample's key for the dropout masks; None (testing): no dropout.
        """
        return self.head(self.spp(self.trunk(images)), keys)

    def compiled(self, backend: str = "inductor") -> "Network":
        """The same parameters in a network whose parts are compiled, each by itself.

        What wraps the parts, as DistributedDataParallel does, then breaks no graph. This network
        stays as it is: tests have other shapes than training. backend: of torch.compile.
        """
        network = Network(copy.copy(self.trunk), copy.copy(self.spp), copy.copy(self.head))
        for part in (network.trunk, network.spp, network.head):
            part.compile(backend=backend)
        return network


def convs_per_stage(model: "ModelConfig") -> list[int]:
    """Convolutions in each stage; `extra_convs` go to the stages of several, deepest first."""
    counts = [stage.convs for stage in model.stages]
    deep = [i for i in reversed(range(len(counts))) if model.stages[i].convs > 1]
    for extra in range(model.extra_convs):
        counts[deep[extra % len(deep)]] += 1
    return counts


def kernel_of(layer: nn.Conv2d | nn.MaxPool2d) -> tuple[int, int, int]:
    """Side of the square kernel, stride, padding."""
    values: list[Any] = [layer.kernel_size, layer.stride, layer.padding]
    kernel, stride, pad = (each[0] if isinstance(each, tuple) else each for each in values)
    return kernel, stride, pad


def map_sides(trunk: nn.Module, side: int) -> dict[str, int]:
    """Rows of the square map after each convolution and pool of a trunk, for side x side images.

    Raises ValueError where a map would have no row.
    """
    sides = {}
    for name, layer in trunk.named_modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, pad = kernel_of(layer)
            side = (side + 2 * pad - kernel) // stride + 1
            if side < 1:
                raise ValueError(f"nothing is left of the image after {name}")
            sides[name] = side
    return sides


def build_trunk(model: "ModelConfig", act: "ActConfig") -> tuple[Trunk, int]:
    """The convolutional part and the channels of its last map; layers are named as in Table 1."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = IMAGE_CHANNELS
    for s, (stage, count) in enumerate(zip(model.stages, convs_per_stage(model), strict=True), 1):
        for i in range(count):
            name = f"{s}" if count == 1 else f"{s}_{i + 1}"
            stride = stage.stride if i == 0 else 1
            pad = stage.pad[i % len(stage.pad)]
            layers[f"conv{name}"] = nn.Conv2d(channels, stage.filters, stage.kernel, stride, pad)
            layers[f"rect{name}"] = build_rectifier(act, stage.filters)
            channels = stage.filters
        if stage.pool:
            layers[f"pool{s}"] = nn.MaxPool2d(stage.pool, stage.pool_stride)  # rounds down
    return Trunk(layers), channels


def build_network(
    model: "ModelConfig",
    act: "ActConfig",
    init: "InitConfig",
    num_classes: int,
    *,
    dropout: float = 0.5,
    seed: int | None = 0,
) -> Network:
    """The network of an architecture table, initialised for `seed` (None: left uninitialised)."""
    trunk, channels = build_trunk(model, act)
    spp = SpatialPyramidPooling(model.spp)
    head = Head(channels * spp.num_bins(), model.fc, num_classes, act, dropout)
    network = Network(trunk, spp, head)
    if seed is not None:
        initialise(network, init, act, seed)
    return network
