"""Builds any architecture of configs/model/: trunk (convolutions), spp, head (fc layers)."""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import ActConfig, InitConfig, ModelConfig
from models.activations import PReLU, Rectifier, build_rectifier
from models.architecture import PoolLayer, num_features, trunk_layers
from models.dropout import Dropout
from models.init import initialise
from models.spp import SpatialPyramidPooling


def rectified(
    layer: nn.Conv2d | nn.Linear,
    rectifier: Rectifier,
    x: Tensor,
    dropout: Dropout | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """dropout(rectifier(layer(x)), keys); one kernel does all but the product if `fused`."""
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
    """Convolutions, each followed by its rectifier, and max-pools."""

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
    """fc1 and fc2, each with rectifier and dropout, then fc3: pooled features -> logits."""

    def __init__(
        self, num_features: int, widths: list[int], num_classes: int, act: ActConfig, drop: float
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
    """One of the paper's networks: head(spp(trunk(images)))."""

    def __init__(self, trunk: nn.Module, spp: SpatialPyramidPooling, head: Head) -> None:
        super().__init__()
        self.trunk, self.spp, self.head = trunk, spp, head

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """Pixel values less their mean [B, 3, H, W] -> logits [B, classes].

        keys: int64 [B], each sample's key for the dropout masks; None (testing): no dropout.
        """
        return self.head(self.spp(self.trunk(images)), keys)

    def compiled(self, backend: str = "inductor") -> "Network":
        """A network with the same parameters, whose parts are compiled one by one.

        So wrappers of the parts, such as DistributedDataParallel, break no graph. This network is
        not compiled, because testing uses other shapes than training.
        """
        network = Network(copy.copy(self.trunk), copy.copy(self.spp), copy.copy(self.head))
        for part in (network.trunk, network.spp, network.head):
            part.compile(backend=backend)
        return network


def kernel_shapes(trunk: nn.Module) -> Iterator[tuple[int, int, int]]:
    """Kernel side, stride and padding of each convolution and pool, in order."""
    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            shape: list[Any] = [layer.kernel_size, layer.stride, layer.padding]
            kernel, stride, pad = (side[0] if isinstance(side, tuple) else side for side in shape)
            yield kernel, stride, pad


def build_trunk(model: ModelConfig, act: ActConfig) -> Trunk:
    """The trunk; a rectifier has the number of its convolution: conv2_1, rect2_1."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in trunk_layers(model):
        if isinstance(layer, PoolLayer):
            modules[layer.name] = nn.MaxPool2d(layer.kernel, layer.stride, layer.pad)
        else:
            modules[layer.name] = nn.Conv2d(
                layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.pad
            )
            rectifier = build_rectifier(act, layer.out_channels)
            modules[layer.name.replace("conv", "rect")] = rectifier
    return Trunk(modules)


def build_network(
    model: ModelConfig,
    act: ActConfig,
    init: InitConfig,
    num_classes: int,
    *,
    dropout: float = 0.5,
    seed: int | None = 0,
) -> Network:
    """The network of an architecture's table, initialised with `seed`; None: not initialised."""
    head = Head(num_features(model), model.fc, num_classes, act, dropout)
    network = Network(build_trunk(model, act), SpatialPyramidPooling(model.spp), head)
    if seed is not None:
        initialise(network, init, act, seed)
    return network
