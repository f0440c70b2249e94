"""From decoded grey levels to what the network sees."""

import torch
from torch import Tensor


def network_input(images: Tensor, mean: Tensor, colours: Tensor | None = None) -> Tensor:
    """uint8 RGB [B, H, W, 3] -> float32 [B, 3, H, W] (channels last in memory), mean subtracted.

    mean: [1, 1, 3] or [H, W, 3]; colours: [B, 3], the colour change of [16], added before the mean
    is subtracted (Sec. 3). Pixel values keep their scale here: the network divides them
    (models/network.py, Scale).
    """
    x = images.to(torch.float32) - mean
    if colours is not None:
        x = x + colours[:, None, None, :]
    return x.permute(0, 3, 1, 2)
