"""Projects image windows onto the last feature map, as [11] does."""

import math
from dataclasses import dataclass

from torch import nn

from models.network import kernels


@dataclass(frozen=True)
class MapGeometry:
    """Position i of the last map has its receptive field centred at offset + stride * i."""

    offset: float  # pixels
    stride: int  # pixels

    def project(self, start: int, size: int, length: int) -> slice:
        """The positions whose centres lie in the pixels start .. start + size - 1; at least one.

        [11]: left floor(x / S) + 1, right ceil(x / S) - 1, here less the offset that the padding
        causes. The map has `length` positions.
        """
        left, right = start - 0.5 - self.offset, start + size - 0.5 - self.offset
        first = max(0, math.floor(left / self.stride) + 1)
        last = min(length - 1, math.ceil(right / self.stride) - 1)
        first = min(first, length - 1)
        return slice(first, max(first, last) + 1)


def map_geometry(trunk: nn.Module) -> MapGeometry:
    """Follow the centre of position 0, and the distance between positions, through the layers."""
    offset, stride = 0.0, 1
    for kernel, step, pad in kernels(trunk):
        offset += ((kernel - 1) / 2 - pad) * stride
        stride *= step
    return MapGeometry(offset, stride)
