"""Spatial pyramid pooling ([11])."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpatialPyramidPooling(nn.Module):
    """Max-pools a map of any size into a fixed number of bins.

    Level n divides an h x w map into n x n bins; bin (i, j) covers rows floor(i*h/n) to
    ceil((i+1)*h/n), and columns likewise, so neighbours may overlap. Nothing is padded, because
    PReLU maps can be negative everywhere.
    """

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.levels = list(levels)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C * bins]: level after level, each as (channel, row, column)."""
        # adaptive_max_pool2d has exactly these bins.
        return torch.cat([F.adaptive_max_pool2d(maps, n).flatten(1) for n in self.levels], dim=1)
