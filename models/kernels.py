"""A layer's bias, rectifier and dropout as one Triton kernel, and their gradients as another.

Memory traffic for activations of n bytes (bf16, batch 128: 3.35 GB for the convolutions of C):

    forward     reads x, writes y                                         2 n   (eager: 4 n)
    backward    reads dE/dy and what forward saved, writes dE/dx          3 n   (eager: 6 n)

The eager forward pass adds the bias separately. The eager backward pass writes the terms of the
slopes' gradient (Eq. 2) as another activation, reads them again to sum them, and reads dE/dx again
for the bias's gradient. Here each program sums both over its rows in fp32 registers; the partial
sums, 2 % of the backward traffic, are added afterwards. There are no atomics, and the order of all
sums depends on the shape only, so equal inputs give equal gradients.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.dropout import Dropout

_TILE = 2048  # activations that a program holds at once: 16 per thread
_TILES = 8  # the most tiles that a program of the backward pass sums


@triton.jit
def _hash_bits(x: tl.tensor) -> tl.tensor:
    """hash_bits of models/dropout.py."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _kept(keys: tl.tensor, units: tl.tensor, threshold: tl.tensor) -> tl.tensor:
    """keep_mask of models/dropout.py: keys int64 [N], units int64 [C] -> bool [N, C]."""
    # Unsigned, so that >> shifts zeros in.
    rows = _hash_bits(keys.to(tl.uint64, bitcast=True))
    bits = _hash_bits(rows[:, None] + units.to(tl.uint64, bitcast=True)[None, :])
    return (bits >> 40).to(tl.int32) >= threshold


@triton.jit
def _times_slope(
    value: tl.tensor, z: tl.tensor, slope: tl.tensor, is_relu: tl.constexpr
) -> tl.tensor:
    """`value` where z > 0, else slope * value: Eq. 1 if value is z, its gradient if dE/df."""
    if is_relu:  # 0 * inf would be nan
        return tl.where(z <= 0, 0.0, value)
    return tl.where(z <= 0, slope * value, value)


@triton.jit
def _by_channel(
    values: tl.tensor,
    channels: tl.tensor,
    stride: tl.tensor,
    num_channels: tl.tensor,
    default: tl.constexpr,
) -> tl.tensor:
    """The channels' values [1, C], or `default` where there are none."""
    row = default
    if values is not None:
        row = tl.load(values + channels * stride, channels < num_channels, 0.0)[None, :]
    return row


@triton.jit
def _forward_kernel(
    x: tl.tensor,
    bias: tl.tensor,
    slopes: tl.tensor,
    keys: tl.tensor,
    units: tl.tensor,
    y: tl.tensor,
    num_rows: tl.tensor,
    num_channels: tl.tensor,
    slope_stride: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    fixed_slope: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
) -> None:
    """A tile of y [N, C] = dropout(rectify(x + bias))."""
    across = tl.cdiv(num_channels, block_channels)
    rows = (tl.program_id(0) // across) * block_rows + tl.arange(0, block_rows)
    channels = (tl.program_id(0) % across) * block_channels + tl.arange(0, block_channels)
    in_rows, in_channels = rows < num_rows, channels < num_channels
    inside = in_rows[:, None] & in_channels[None, :]
    places = rows.to(tl.int64)[:, None] * num_channels + channels[None, :]

    slope = _by_channel(slopes, channels, slope_stride, num_channels, fixed_slope)
    z = tl.load(x + places, inside, 0.0).to(tl.float32)
    z += _by_channel(bias, channels, 1, num_channels, 0.0)
    rectified = _times_slope(z, z, slope, fixed_slope == 0)
    if keys is not None:
        key, unit = tl.load(keys + rows, in_rows, 0), tl.load(units + channels, in_channels, 0)
        rectified = tl.where(_kept(key, unit, threshold), rectified * scale, 0.0)
    tl.store(y + places, rectified.to(y.dtype.element_ty), inside)


@triton.jit
def _backward_kernel(
    grad_y: tl.tensor,
    saved: tl.tensor,
    bias: tl.tensor,
    slopes: tl.tensor,
    keys: tl.tensor,
    units: tl.tensor,
    grad_x: tl.tensor,
    bias_sums: tl.tensor,
    slope_sums: tl.tensor,
    num_rows: tl.tensor,
    num_channels: tl.tensor,
    slope_stride: tl.tensor,
    threshold: tl.tensor,
    scale: tl.tensor,
    fixed_slope: tl.constexpr,
    block_rows: tl.constexpr,
    block_channels: tl.constexpr,
    tiles: tl.constexpr,
) -> None:
    """`tiles` tiles of dE/dx, one below another, and their part of dE/dbias and dE/dslopes."""
    across = tl.cdiv(num_channels, block_channels)
    part = tl.program_id(0) // across
    channels = (tl.program_id(0) % across) * block_channels + tl.arange(0, block_channels)
    in_channels = channels < num_channels

    slope = _by_channel(slopes, channels, slope_stride, num_channels, fixed_slope)
    shift = _by_channel(bias, channels, 1, num_channels, 0.0)
    bias_terms = tl.zeros((block_rows, block_channels), tl.float32)
    slope_terms = tl.zeros((block_rows, block_channels), tl.float32)
    for tile in range(tiles):
        rows = (part * tiles + tile) * block_rows + tl.arange(0, block_rows)
        in_rows = rows < num_rows
        inside = in_rows[:, None] & in_channels[None, :]
        places = rows.to(tl.int64)[:, None] * num_channels + channels[None, :]
        grad = tl.load(grad_y + places, inside, 0.0).to(tl.float32)
        z = tl.load(saved + places, inside, 0.0).to(tl.float32) + shift
        if keys is not None:
            key, unit = tl.load(keys + rows, in_rows, 0), tl.load(units + channels, in_channels, 0)
            grad = tl.where(_kept(key, unit, threshold), grad * scale, 0.0)
        grad_z = _times_slope(grad, z, slope, fixed_slope == 0)
        tl.store(grad_x + places, grad_z.to(grad_x.dtype.element_ty), inside)
        bias_terms += grad_z
        if slopes is not None:
            slope_terms += tl.where(z <= 0, z * grad, 0.0)  # Eq. 2, 3
    sums = part * num_channels + channels
    tl.store(bias_sums + sums, tl.sum(bias_terms, 0), in_channels)
    if slopes is not None:
        tl.store(slope_sums + sums, tl.sum(slope_terms, 0), in_channels)


def _saves_output(slopes: Tensor | None, slope: float) -> bool:
    """Whether the backward pass reads y, which the next layer keeps anyway, instead of x.

    y has the sign of x + bias only while the slope is not negative, and Eq. 2 needs x + bias
    itself, which y does not give at slope 0. A learned slope may get there at any step.
    """
    return slopes is None and slope >= 0


def _channels_last(x: Tensor) -> Tensor:
    """[B, C, ...] in channels-last memory order: [N, C] for the kernels."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


def _tile(num_channels: int) -> tuple[int, int]:
    """Rows and channels of a tile. No thread idles if a power of two >= 32 divides num_channels."""
    power_of_two = num_channels & -num_channels
    width = power_of_two if power_of_two >= 32 else triton.next_power_of_2(num_channels)
    return _TILE // min(width, 128), min(width, 128)


def _numbers(x: Tensor, slopes: Tensor | None, slope: float, drop: float) -> dict[str, Any]:
    """The arguments of both kernels that are not tensors."""
    block_rows, block_channels = _tile(x.shape[1])
    return {
        "num_rows": x.numel() // x.shape[1],
        "num_channels": x.shape[1],
        "slope_stride": 0 if slopes is None or slopes.numel() == 1 else 1,
        "threshold": int(drop * (1 << 24)),
        "scale": 1 / (1 - drop),
        "fixed_slope": slope if slopes is None else None,
        "block_rows": block_rows,
        "block_channels": block_channels,
    }


@torch.library.custom_op("rectifiers::forward", mutates_args=())
def _forward(
    x: Tensor,
    bias: Tensor,
    slopes: Tensor | None,
    slope: float,
    keys: Tensor | None,
    units: Tensor | None,
    drop: float,
) -> Tensor:
    y, numbers = torch.empty_like(x), _numbers(x, slopes, slope, drop)
    down = triton.cdiv(numbers["num_rows"], numbers["block_rows"])
    across = triton.cdiv(x.shape[1], numbers["block_channels"])
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _forward_kernel[(down * across,)](x, bias, slopes, keys, units, y, **numbers)
    return y


@_forward.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _empty_sums(x: Tensor, slopes: Tensor | None) -> Tensor:
    """Partial sums [1 or 2, programs, C]: of the bias and, if learned, of the slopes."""
    parts = triton.cdiv(x.numel() // x.shape[1], _tile(x.shape[1])[0] * _TILES)
    kinds = 1 if slopes is None else 2
    return x.new_empty((kinds, parts, x.shape[1]), dtype=torch.float32)


@torch.library.custom_op("rectifiers::backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    saved: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    slope: float,
    keys: Tensor | None,
    units: Tensor | None,
    drop: float,
) -> tuple[Tensor, Tensor]:
    """dE/dx, and [1 or 2, C]: dE/dbias and, if learned, dE/dslopes, per channel.

    bias: None if y was saved instead of x.
    """
    grad_x, sums = torch.empty_like(grad_y), _empty_sums(grad_y, slopes)
    numbers = _numbers(grad_y, slopes, slope, drop)
    grid = (sums.shape[1] * triton.cdiv(sums.shape[2], numbers["block_channels"]),)
    slope_sums = None if slopes is None else sums[1]
    tiles = min(_TILES, triton.cdiv(numbers["num_rows"], numbers["block_rows"]))
    tensors = (grad_y, saved, bias, slopes, keys, units, grad_x, sums[0], slope_sums)
    with torch.cuda.device_of(grad_y):
        _backward_kernel[grid](*tensors, **numbers, tiles=tiles)
    return grad_x, sums.sum(1)


@_backward.register_fake
def _(grad_y: Tensor, saved: Tensor, bias: Any, slopes: Any, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_y), _empty_sums(grad_y, slopes).sum(1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, slopes, ctx.slope, keys, units, ctx.drop = inputs
    if _saves_output(slopes, ctx.slope):
        ctx.save_for_backward(output, None, slopes, keys, units)
    else:
        ctx.save_for_backward(x, bias, slopes, keys, units)


def _gradients(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    saved, bias, slopes, keys, units = ctx.saved_tensors
    grad_y = _channels_last(grad_y)
    grad_x, sums = _backward(grad_y, saved, bias, slopes, ctx.slope, keys, units, ctx.drop)
    by_slope = None
    if slopes is not None:
        by_slope = sums[1] if slopes.numel() > 1 else sums[1].sum(0, keepdim=True)
    return grad_x, sums[0], by_slope, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def run_on(x: Tensor) -> bool:
    """Whether the kernels can take x: 16- or 32-bit floats on a GPU, or interpreted on a CPU."""
    floats = (torch.float32, torch.bfloat16, torch.float16)
    return x.dtype in floats and (x.is_cuda or not isinstance(_forward_kernel, triton.JITFunction))


def rectify(
    x: Tensor,
    bias: Tensor,
    slopes: Tensor | float,
    dropout: Dropout | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """Eq. 1 of x + bias, then dropout, in fp32; the result has the shape and type of x.

    x: a layer's output without its bias, [B, C, H, W], or [B, C] with dropout. slopes: learned,
    fp32 [C] or [1], or a fixed number. keys: as in Dropout.forward.
    """
    learned, fixed = (slopes, 0.0) if isinstance(slopes, Tensor) else (None, slopes)
    units, drop = None, 0.0
    if dropout is None or keys is None or dropout.drop == 0:
        keys = None
    else:
        units, drop = dropout.units, dropout.drop
    return _forward(_channels_last(x), bias, learned, fixed, keys, units, drop)
