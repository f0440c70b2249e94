"""Spatial pyramid pooling of all windows of a feature map, without a loop over windows."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bin:
    """A bin of the pyramid: its offset in the window and its size, in positions of the map."""

    y: int
    x: int
    height: int
    width: int


def pyramid_bins(levels: list[int], height: int, width: int) -> list[Bin]:
    """The bins of a window, level after level, row by row.

    As in [11] and models/spp.py, bin i of n covers floor(i * h / n) to ceil((i + 1) * h / n).
    """

    def limits(num: int, length: int) -> list[tuple[int, int]]:
        return [(i * length // num, -(-(i + 1) * length // num)) for i in range(num)]

    return [
        Bin(top, left, bottom - top, right - left)
        for num in levels
        for top, bottom in limits(num, height)
        for left, right in limits(num, width)
    ]


def sliding_max(
    maps: Tensor, height: int, width: int, known: dict[tuple[int, int], Tensor]
) -> Tensor:
    """Maxima of all height x width boxes of maps [B, h, w, C]: [B, h - height + 1, ..., C].

    A box is the union of four boxes of half its size, which overlap if the size is odd. `known`
    caches the maxima by box size. Nothing is padded, because maps may be negative everywhere.
    """
    if (height, width) == (1, 1):
        return maps
    if (height, width) not in known:
        half = sliding_max(maps, (height + 1) // 2, (width + 1) // 2, known)
        if down := height // 2:
            half = torch.maximum(half[:, :-down], half[:, down:])
        if right := width // 2:
            half = torch.maximum(half[:, :, :-right], half[:, :, right:])
        known[height, width] = half
    return known[height, width]


class PooledWindows:
    """All windows (stride 1) of maps [B, C, h, w], pooled on demand.

    Along an axis where the map is smaller, windows and their bins shrink to the map, as they do for
    a network that sees a smaller image. Windows are numbered image by image, row by row; each image
    has `per_image`.
    """

    def __init__(self, maps: Tensor, levels: list[int], window: int) -> None:
        batch, _, h, w = maps.shape
        height, width = min(window, h), min(window, w)
        rows, columns = h - height + 1, w - width + 1
        bins = pyramid_bins(levels, height, width)
        sizes = sorted({(b.height, b.width) for b in bins})
        self.per_image = rows * columns
        self._pooled = _pool(maps.permute(0, 2, 3, 1).contiguous(), sizes)
        # A bin's row in `_pooled` is its window's start plus the bin's offset.
        image = torch.arange(batch, device=maps.device)[:, None, None] * (h * w)
        y = torch.arange(rows, device=maps.device)[:, None] * w
        x = torch.arange(columns, device=maps.device)
        self._starts = (image + y + x).flatten()
        planes = [sizes.index((b.height, b.width)) * batch * h * w for b in bins]
        offsets = [plane + b.y * w + b.x for plane, b in zip(planes, bins, strict=True)]
        # Not torch.tensor(..., device=), which would wait for the trunk's kernels.
        self._offsets = torch.tensor(offsets).to(maps.device, non_blocking=True)

    def __len__(self) -> int:
        return len(self._starts)

    def features(self, start: int, stop: int) -> Tensor:
        """Windows start to stop: [stop - start, bins * C], the C channels of a bin side by side."""
        rows = self._starts[start:stop, None] + self._offsets
        return self._pooled.index_select(0, rows.flatten()).view(len(rows), -1)


def _pool(maps: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    """Sliding maxima of maps [B, h, w, C] for each box size: [sizes * B * h * w, C].

    The last rows and columns, where boxes would leave the map, are uninitialised.
    """
    pooled = maps.new_empty(len(sizes), *maps.shape)
    known: dict[tuple[int, int], Tensor] = {}
    for plane, size in zip(pooled, sizes, strict=True):
        maxima = sliding_max(maps, *size, known)
        plane[:, : maxima.shape[1], : maxima.shape[2]] = maxima
    return pooled.view(-1, maps.shape[3])
