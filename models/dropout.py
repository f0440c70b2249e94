"""Dropout whose mask is a pure function of each sample's key: no generator state."""

import torch
from torch import Tensor, nn

# The finaliser of SplitMix64; torch multiplies int64 modulo 2^64, as it needs.
_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash_bits(x: Tensor) -> Tensor:
    """int64 -> int64 whose bits are as good as random, elementwise."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def keep_mask(keys: Tensor, layer: int, columns: Tensor, drop: float) -> Tensor:
    """Which units stay: bool [B, W] for keys int64 [B] and columns int64 [W] of layer `layer`.

    Unit j of sample b depends on (keys[b], layer, j) only, whichever process or device asks, and
    whichever part of the columns it holds.
    """
    units = columns + (layer << 32)
    bits = hash_bits(hash_bits(keys)[:, None] + units[None, :] * _GOLDEN)
    return _shift_right(bits, 40) >= int(drop * (1 << 24))


class Dropout(nn.Module):
    """Dropout on a fully connected layer (Sec. 3): kept units are scaled by 1 / (1 - drop)."""

    def __init__(self, drop: float, layer: int) -> None:
        super().__init__()
        self.drop, self.layer = drop, layer

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """x [B, W]; keys int64 [B], or None for testing: x unchanged."""
        if keys is None or self.drop == 0:
            return x
        columns = torch.arange(x.shape[1], device=x.device)
        return x * keep_mask(keys, self.layer, columns, self.drop) / (1 - self.drop)

    def extra_repr(self) -> str:
        return f"drop={self.drop}"
