"""Projection of image windows onto the last feature map, as in [11]."""

import math
from dataclasses import dataclass

from torch import nn

from models.network import kernel_shapes


@dataclass(frozen=True)
class MapGeometry:
    """The receptive field of the last map's position i is centred at offset + stride * i."""

    offset: float  # pixels
    stride: int  # pixels

    def project(self, start: int, size: int, length: int) -> slice:
        """The positions centred in the pixels start .. start + size - 1; at least one.

        As in [11], left floor(x / S) + 1 and right ceil(x / S) - 1, here less the offset. The map
        has `length` positions.
        """
        left, right = start - 0.5 - self.offset, start + size - 0.5 - self.offset
        first = max(0, math.floor(left / self.stride) + 1)
        last = min(length - 1, math.ceil(right / self.stride) - 1)
        first = min(first, length - 1)
        return slice(first, max(first, last) + 1)


def map_geometry(trunk: nn.Module) -> MapGeometry:
    """The geometry of a trunk's last map, followed layer by layer."""
    offset, stride = 0.0, 1
    for kernel, step, pad in kernel_shapes(trunk):
        offset += ((kernel - 1) / 2 - pad) * stride
        stride *= step
    return MapGeometry(offset, stride)
