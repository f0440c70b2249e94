"""The rectifiers of Sec. 2.1."""

from importlib.util import find_spec
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import ActConfig


class FixedRectifier(nn.Module):
    """Eq. 1 with a fixed slope: ReLU (a = 0) or Leaky ReLU (a small)."""

    fused = False  # with bias and dropout in one kernel (models/kernels.py)

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, y: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        return F.relu(y) if self.slope == 0 else F.leaky_relu(y, self.slope)


class PReLU(nn.Module):
    """Eq. 1: f(y_i) = max(0, y_i) + a_i * min(0, y_i), with a_i learned.

    `slopes` holds one a per channel, or a single one for the layer (channel-shared). Autograd gives
    Eq. 2 and 3: the sum of dE/df * y over all positions with y <= 0. Slopes are not constrained.
    """

    fused = False

    def __init__(self, num_slopes: int, initial: float) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.full((num_slopes,), initial))

    def forward(self, y: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        return F.prelu(y, self.slopes.to(y.dtype))


Rectifier: TypeAlias = FixedRectifier | PReLU


def build_rectifier(act: ActConfig, num_channels: int) -> Rectifier:
    """The rectifier after a layer with `num_channels` outputs."""
    rectifier: Rectifier
    if act.learned:
        rectifier = PReLU(act.num_slopes(num_channels), act.slope)
    else:
        rectifier = FixedRectifier(act.slope)
    # act.kernel=auto is eager until both have been timed on a GPU.
    rectifier.fused = act.kernel == "triton" and find_spec("triton") is not None
    return rectifier
