"""Model parallelism of the fc layers, for parallel=hybrid.

The paper runs the convolutions data-parallel and lets the GPUs synchronise before fc1 (Sec. 3,
after [15], "one weird trick"), whose fc layers then run on a single GPU. Here they are divided
among all P processes, so that their weights, gradients and momentum are neither kept twice nor
sent: for model C 252 of 331 million parameters. Activations are sent instead:

    features  [b, F]     on each process, its rows of the batch
    gathered  [B, F]     B = P b rows
    fc1       [B, W1/P]  outputs divided (with their biases, slopes and dropout units)
    fc2       [B, W2]    inputs divided: a partial sum; summed and divided again to [B, W2/P]
    fc3       [B, K]     inputs divided: a partial sum; summed and given back by rows, [b, K]
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from engine.distributed import World
from models.describe import Description
from models.network import Head

_WEIGHT = 4  # bytes; weights, gradients and momentum are fp32 whatever the arithmetic

# torch 2.14 has new names for these, 2.11 only the old ones.
_all_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_into = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


# Operators that torch.compile does not look into: compiled by torch 2.11, a backward pass lost what
# a collective had written into a tensor, and the fc layers got gradients of zero.
@torch.library.custom_op("rectifiers::all_gather", mutates_args=())
def _all_gather(part: Tensor) -> Tensor:
    parts = _like_all_parts(part)
    _all_gather_into(parts, part.contiguous())
    return parts


@torch.library.custom_op("rectifiers::reduce_scatter", mutates_args=())
def _reduce_scatter(parts: Tensor) -> Tensor:
    mine = _like_one_part(parts)
    _reduce_scatter_into(mine, parts.contiguous())
    return mine


@_all_gather.register_fake
def _like_all_parts(part: Tensor) -> Tensor:
    return part.new_empty(dist.get_world_size() * len(part), *part.shape[1:])


@_reduce_scatter.register_fake
def _like_one_part(parts: Tensor) -> Tensor:
    return parts.new_empty(len(parts) // dist.get_world_size(), *parts.shape[1:])


def gather(part: Tensor, dim: int) -> Tensor:
    """All processes' parts, joined along `dim` in order of rank."""
    parts = _all_gather(part).unflatten(0, (dist.get_world_size(), -1))
    return parts.movedim(0, dim).flatten(dim, dim + 1)


def scatter_sum(partial: Tensor, dim: int) -> Tensor:
    """The sum of all processes' tensors, in fp32, of which each gets its part along `dim`."""
    parts = partial.float().unflatten(dim, (dist.get_world_size(), -1)).movedim(dim, 0)
    return _reduce_scatter(parts.flatten(0, 1))


class Gather(torch.autograd.Function):
    """gather, whose transpose is scatter_sum."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int) -> Tensor:
        ctx.dim = dim
        return gather(part, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return scatter_sum(gradient, ctx.dim).to(gradient.dtype), None


class ScatterSum(torch.autograd.Function):
    """scatter_sum, whose transpose is gather."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.dtype = dim, partial.dtype
        return scatter_sum(partial, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gather(gradient.to(ctx.dtype), ctx.dim), None


# Along which dimension each parameter is divided. fc3.bias, a slope shared by a layer: not at all.
_DIMS = {
    **{"fc1.weight": 0, "fc1.bias": 0, "rect1.slopes": 0},
    **{"fc2.weight": 1, "fc2.bias": 0, "rect2.slopes": 0},
    **{"fc3.weight": 1},
}


class ShardedHead(Head):
    """One process's part of a Head; the same modules and parameter names, and the same logits."""

    def __init__(self, head: Head, world: World) -> None:
        """Takes over the modules of `head`, on the CPU: a device need not hold all of it."""
        nn.Module.__init__(self)
        self.size = world.size
        shapes = {name: parameter.shape for name, parameter in head.named_parameters()}
        whole = {name for name, shape in shapes.items() if "slopes" in name and shape.numel() == 1}
        self.dims = {n: dim for n, dim in _DIMS.items() if n in shapes and n not in whole}
        self.fc1, self.rect1, self.drop1 = head.fc1, head.rect1, head.drop1
        self.fc2, self.rect2, self.drop2 = head.fc2, head.rect2, head.drop2
        self.fc3 = head.fc3
        for name, dim in self.dims.items():
            module, _, leaf = name.rpartition(".")
            part = self.get_parameter(name).detach().chunk(self.size, dim)[world.rank]
            setattr(self.get_submodule(module), leaf, nn.Parameter(part.clone()))
        for drop in (self.drop1, self.drop2):
            drop.units = drop.units.chunk(self.size)[world.rank].clone()

    def forward(self, features: Tensor, keys: Tensor | None = None) -> Tensor:
        """features [b, C * bins] -> logits [b, classes]; keys [b] as in Network.forward.

        All processes call it together, each with as many rows.
        """
        keys = None if keys is None else gather(keys, 0)
        x = Gather.apply(features, 0)
        x = self.drop1(self.rect1(self.fc1(x)), keys)
        x = ScatterSum.apply(F.linear(x, self.fc2.weight), 1) + self.fc2.bias
        x = self.drop2(self.rect2(x), keys)
        # Every process adds its share of the bias: its gradient is then that of the mean over all
        # rows, the same everywhere, and nothing has to be sent.
        return ScatterSum.apply(F.linear(x, self.fc3.weight, self.fc3.bias / self.size), 0)


def gradients_of_all(head: nn.Module, world: World) -> None:
    """Make the gradients of a ShardedHead those of the mean loss over all processes.

    A part sees the rows of all processes, so its gradient is that of the sum of their losses; DDP
    averages the trunk's. A slope shared by a whole layer sees only this process's units.
    """
    assert isinstance(head, ShardedHead)

    def mean(gradient: Tensor) -> Tensor:
        return gradient / world.size

    def mean_of_parts(gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total / world.size

    for name, parameter in head.named_parameters():
        if name in head.dims:
            parameter.register_hook(mean)
        elif "slopes" in name:
            parameter.register_hook(mean_of_parts)


@dataclass
class Cost:
    """What one process sends and keeps."""

    parallel: str
    bytes_sent: int  # a step, as rings send: gradients, and what the fc layers exchange
    bytes_kept: int  # weights, gradients and momentum, between steps


def costs(network: Description, num_processes: int, batch_size: int, precision: str) -> list[Cost]:
    """The costs of parallel=ddp and parallel=hybrid, by arithmetic.

    In a ring all-reduce of n bytes each process sends 2 (P-1)/P n, in a gather or a reduce-scatter
    half of that. Activations are sent in the arithmetic's type, or in fp32 where they are summed,
    and with each image its key for dropout.
    """
    fc1, fc2, fc3 = (layer for layer in network.layers if layer.kind == "fc")
    [features] = next(layer.shape for layer in network.layers if layer.kind == "spp")
    [hidden], [classes] = fc2.shape, fc3.shape
    per_image = 2 if precision in ("bf16", "fp16") else 4
    forward = per_image * features + 4 * (hidden + classes) + 8
    backward = 4 * features + per_image * (hidden + classes)
    slopes = sum(layer.slopes for layer in (fc1, fc2) if layer.slopes > 1)  # not one of a layer
    divided = sum(layer.parameters for layer in (fc1, fc2, fc3)) - classes + slopes  # not fc3.bias
    everything = network.parameters + network.slopes
    ring, kept = (num_processes - 1) / num_processes, 3 * _WEIGHT
    averaged = 2 * _WEIGHT * (everything - divided - classes)
    sent = ring * (averaged + batch_size * (forward + backward))
    rest = everything - divided
    return [
        Cost("ddp", round(2 * ring * everything * _WEIGHT), everything * kept),
        Cost("hybrid", round(sent), (rest + divided // num_processes) * kept),
    ]


def cost_table(costs: list[Cost]) -> str:
    """The costs for a person."""
    return "\n".join(
        f"parallel={cost.parallel:<7} sends {cost.bytes_sent / 1e6:9,.1f} MB a step, keeps "
        f"{cost.bytes_kept / 1e9:6.2f} GB (weights, gradients, momentum), each process"
        for cost in costs
    )
