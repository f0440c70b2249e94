"""The layers of an architecture's table (Tables 1 and 3), from which networks are built.

This file does not import torch, which takes seconds, so layers can be counted without it.
"""

from dataclasses import dataclass

from configs.schema import ModelConfig

IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class ConvLayer:
    """A convolution with square filters."""

    name: str  # as in Table 1
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    pad: int

    @property
    def fan_in(self) -> int:
        """n of Eq. 10: the connections of one response, k * k * c."""
        return self.kernel**2 * self.in_channels

    @property
    def fan_out(self) -> int:
        """n_hat of Eq. 14: the connections of one input, k * k * d."""
        return self.kernel**2 * self.out_channels


@dataclass(frozen=True)
class PoolLayer:
    """A max-pool with square windows."""

    name: str
    kernel: int
    stride: int
    pad: int = 0


def convs_per_stage(model: ModelConfig) -> list[int]:
    """Convolutions in each stage; `extra_convs` go to stages of several, the deepest first."""
    counts = [stage.convs for stage in model.stages]
    deepest_first = [i for i in reversed(range(len(counts))) if counts[i] > 1]
    for extra in range(model.extra_convs):
        counts[deepest_first[extra % len(deepest_first)]] += 1
    return counts


def trunk_layers(model: ModelConfig) -> list[ConvLayer | PoolLayer]:
    """Convolutions and pools from the image to the last map, named as in Table 1."""
    layers: list[ConvLayer | PoolLayer] = []
    channels = IMAGE_CHANNELS
    for s, (stage, count) in enumerate(zip(model.stages, convs_per_stage(model), strict=True), 1):
        for i in range(count):
            name = f"conv{s}" if count == 1 else f"conv{s}_{i + 1}"
            stride = stage.stride if i == 0 else 1
            pad = stage.pad[i % len(stage.pad)]
            layers.append(ConvLayer(name, channels, stage.filters, stage.kernel, stride, pad))
            channels = stage.filters
        if stage.pool:
            layers.append(PoolLayer(f"pool{s}", stage.pool, stage.pool_stride))
    return layers


def num_features(model: ModelConfig) -> int:
    """The inputs of fc1: the last map's channels times its bins, 63 for {7, 3, 2, 1}."""
    return model.stages[-1].filters * sum(n * n for n in model.spp)


def map_side(side: int, kernel: int, stride: int, pad: int) -> int:
    """Side of the map that a convolution or pool makes of a square map; both round down.

    Raises ValueError if nothing is left of the map.
    """
    side = (side + 2 * pad - kernel) // stride + 1
    if side < 1:
        raise ValueError("the image is too small for the layers")
    return side
