"""Dropout whose masks are pure functions of the samples' keys: no generator state."""

import torch
from torch import Tensor, nn

# The finaliser of SplitMix64. Its products are modulo 2^64, as torch's int64 products are.
_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_bits(x: Tensor) -> Tensor:
    """int64 -> int64, elementwise: pseudorandom bits."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def unit_keys(layer: int, width: int) -> Tensor:
    """int64 [W]: a key for each unit of a layer, for keep_mask."""
    # On the meta device, arange would import torch's compiler, which takes seconds.
    return (torch.arange(width, device="cpu") + (layer << 32)) * _GOLDEN


def keep_mask(keys: Tensor, units: Tensor, drop: float) -> Tensor:
    """Which units are kept: bool [B, W] for samples' keys int64 [B] and units' keys int64 [W].

    Each entry depends on its two keys only, so any process or device that holds part of the batch
    or of the layer gets its part of the mask.
    """
    bits = hash_bits(hash_bits(keys)[:, None] + units[None, :])
    return _shift_right(bits, 40) >= int(drop * (1 << 24))


class Dropout(nn.Module):
    """Dropout on a fully connected layer (Sec. 3): kept units are scaled by 1 / (1 - drop)."""

    units: Tensor

    def __init__(self, drop: float, layer: int, width: int) -> None:
        super().__init__()
        self.drop = drop
        self.register_buffer("units", unit_keys(layer, width), persistent=False)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """x [B, W] -> the same shape; keys int64 [B], or None in testing, which returns x."""
        if keys is None or self.drop == 0:
            return x
        return x * keep_mask(keys, self.units, self.drop) / (1 - self.drop)
