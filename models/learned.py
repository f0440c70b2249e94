"""What a network has learned: the slopes of its layers (Table 1) and conv1's filters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent, of the slopes of a layer

CONV1 = "trunk.conv1.weight"  # of every network; [filters, 3, k, k]


@dataclass(frozen=True)
class Slopes:
    """The learned slopes of a layer."""

    mean: float
    quantiles: list[float]  # at QUANTILES
    count: int


def slopes_of(values: "Tensor") -> Slopes:
    """Statistics of a layer's slopes."""
    slopes = values.detach().double().flatten().cpu().numpy()
    quantiles = [round(float(q), 5) for q in np.percentile(slopes, QUANTILES)]
    return Slopes(float(slopes.mean()), quantiles, len(slopes))


def layer_before(rectifier: str) -> str:
    """The weight layer before the rectifier of this module name, as in Table 1: conv2_1, fc1."""
    name = rectifier.rsplit(".", 1)[-1]
    return name.replace("rect", "conv" if "trunk" in rectifier else "fc")


def slopes_by_layer(parameters: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The slopes among a network's parameters, by the layer names of Table 1."""
    return {
        layer_before(name.removesuffix(".slopes")): values.detach()
        for name, values in parameters.items()
        if name.endswith(".slopes")
    }


def filter_grid(filters: "Tensor") -> NDArray[np.uint8]:
    """conv1's filters [N, 3, k, k] as one image: uint8 RGB [H, W, 3], one pixel per weight.

    Zero is mid-grey; each filter is scaled so that its largest weight is black or white. Lines of
    white pixels separate the filters, which are arranged in ceil(sqrt(N)) columns.
    """
    values: NDArray[np.float32] = filters.detach().float().cpu().numpy()
    num_filters, _, side, _ = values.shape
    columns = math.ceil(math.sqrt(num_filters))
    rows = math.ceil(num_filters / columns)
    grid = np.full((rows * (side + 1) + 1, columns * (side + 1) + 1, 3), 255, np.float32)
    for index, weights in enumerate(values):
        row, column = divmod(index, columns)
        top, left = row * (side + 1) + 1, column * (side + 1) + 1
        largest = max(np.abs(weights).max(), np.float32(1e-30))  # a filter may be all zeros
        pixels = np.float32(127.5) * (1 + weights / largest)
        grid[top : top + side, left : left + side] = pixels.transpose(1, 2, 0)
    return grid.round().astype(np.uint8)
