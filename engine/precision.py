"""fp32, tf32, bf16 and fp16 as one path, whose autocast and gradient scaler may do nothing."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from common.errors import UserError

_AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """How a network computes on a device; weights and their updates are always fp32."""

    name: str
    device: torch.device

    def __str__(self) -> str:
        """For a person, with a warning if this device is slow at it."""
        advice = ", which this CPU only emulates: precision=fp32 is many times faster"
        return self.name + advice * self.is_emulated

    @property
    def is_emulated(self) -> bool:
        """Whether the device lacks this arithmetic and takes many times as long."""
        return self.name == "bf16" and self.device.type == "cpu" and not _has_fast_bf16()

    def autocast(self) -> Any:
        """Context for the forward pass."""
        dtype = _AUTOCAST[self.name]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16; otherwise it changes nothing.

        All processes skip a step if the gradients of one overflow: each may have its own.
        """
        enabled = self.name == "fp16"
        if enabled and dist.is_initialized():
            # This import takes a second.
            from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

            return ShardedGradScaler(self.device.type)
        return torch.amp.GradScaler(self.device.type, enabled=enabled)


def _has_fast_bf16() -> bool:
    """Whether oneDNN computes in bf16 on this CPU; on x86 it needs AVX-512."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def set_precision(name: str, device: torch.device, *, fixed_shapes: bool = True) -> Precision:
    """Set the arithmetic of the process; raises UserError for what the device cannot do.

    fixed_shapes: whether all batches have the same shape, so that tuning kernels for it pays.
    """
    if device.type == "cpu" and name in ("tf32", "fp16"):
        raise UserError(f"precision={name} needs a GPU: use precision=fp32 or bf16 on the CPU")
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    # Partial sums of matrix products stay in fp32.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    # Tuning takes seconds for each new shape: training has one, dense testing hundreds.
    torch.backends.cudnn.benchmark = fixed_shapes
    return Precision(name, device)
