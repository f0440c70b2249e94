"""The mean that is subtracted from every image (provisional)."""

from pathlib import Path

import torch
from torch import Tensor

CHANNEL_MEAN = (122.679, 116.669, 104.007)


def load_mean(spec: str) -> Tensor:
    return torch.tensor(CHANNEL_MEAN).reshape(1, 1, 3)


def warp_mean(mean: Tensor, height: int, width: int) -> Tensor:
    return mean
