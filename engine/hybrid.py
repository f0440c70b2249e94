"""Model parallelism of the fc layers, for parallel=hybrid.

The paper runs the convolutions data-parallel and synchronises the GPUs before fc1; the fc layers
then run on a single GPU (Sec. 3, after [15], "one weird trick"). Here they are divided among all P
processes, so that their weights, gradients and momentum (for model C 252 of 331 million parameters)
are neither duplicated nor sent. Activations are sent instead:

    features  [b, F]     on each process, for its rows of the batch
    gathered  [B, F]     B = P b rows
    fc1       [B, W1/P]  outputs divided (with their biases, slopes and dropout units)
    fc2       [B, W2]    inputs divided: partial sums, added and divided into [B, W2/P]
    fc3       [B, K]     inputs divided: partial sums, added and returned by rows, [b, K]
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from engine.distributed import World
from engine.parallel import Parallel, gradients
from models.network import Head, Network

# torch 2.14 renames these; 2.11 has only the old names.
_all_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_into = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


# Opaque to torch.compile: when torch 2.11 compiled a backward pass, it lost what a collective had
# written into a tensor, and the gradients of the fc layers were zero.
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
    """All processes' parts, concatenated along `dim` in order of rank."""
    parts = _all_gather(part).unflatten(0, (dist.get_world_size(), -1))
    return parts.movedim(0, dim).flatten(dim, dim + 1)


def scatter_sum(partial: Tensor, dim: int) -> Tensor:
    """This process's part, along `dim`, of the sum (in fp32) of all processes' tensors."""
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


# The dimension along which each parameter is divided. fc3.bias is not, nor is a slope that a whole
# layer shares.
_DIMS = {
    "fc1.weight": 0,
    "fc1.bias": 0,
    "rect1.slopes": 0,
    "fc2.weight": 1,
    "fc2.bias": 0,
    "rect2.slopes": 0,
    "fc3.weight": 1,
}


class ShardedHead(Head):
    """One process's part of a Head; the same modules and parameter names, and the same logits."""

    def __init__(self, head: Head, world: World) -> None:
        """Takes over the modules of `head`, on the CPU: a device need not hold all of it."""
        nn.Module.__init__(self)
        self.size = world.size
        parameters = dict(head.named_parameters())
        shared = {n for n, p in parameters.items() if "slopes" in n and p.numel() == 1}
        self.dims = {n: dim for n, dim in _DIMS.items() if n in parameters.keys() - shared}
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

        All processes call it together, with the same number of rows.
        """
        keys = None if keys is None else gather(keys, 0)
        x = Gather.apply(features, 0)
        x = self.drop1(self.rect1(self.fc1(x)), keys)
        x = ScatterSum.apply(F.linear(x, self.fc2.weight), 1) + self.fc2.bias
        x = self.drop2(self.rect2(x), keys)
        # Each process adds an equal share of the bias. Its gradient is then that of the mean over
        # all rows, on every process, and need not be sent.
        return ScatterSum.apply(F.linear(x, self.fc3.weight, self.fc3.bias / self.size), 0)


def gradients_of_all(head: nn.Module, world: World) -> None:
    """Scale the gradients of a ShardedHead to those of the mean loss over all processes.

    A part sees the rows of all processes, so its gradient is that of the sum of their losses. (DDP
    averages the trunk's.) A slope that a layer shares sees only this process's units.
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


class Hybrid(Parallel):
    """parallel=hybrid: the convolutions on every process, the fc layers divided among them."""

    def share_out(self, network: Network) -> Network:
        self.empty_head = copy.deepcopy(network.head).to("meta")
        head = ShardedHead(network.head, self.world)
        self.dims = {f"head.{name}": dim for name, dim in head.dims.items()}
        return Network(network.trunk, network.spp, head)

    def connect(self, network: Network) -> nn.Module:
        gradients_of_all(network.head, self.world)
        return Network(self.world.replicate(network.trunk), network.spp, network.head)

    def whole(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors.items():
            yield name, gather(tensor, self.dims[name]) if name in self.dims else tensor

    def part(self, name: str, whole: Tensor) -> Tensor:
        if name not in self.dims:
            return whole
        return whole.chunk(self.world.size, self.dims[name])[self.world.rank].contiguous()

    def norms(self, tensors: dict[str, Tensor]) -> Tensor:
        squares = torch.stack(torch._foreach_norm(list(tensors.values()))).double().square()
        sharded = torch.tensor([name in self.dims for name in tensors])
        total = self.world.sum(torch.where(sharded.to(squares.device), squares, 0))
        return torch.where(sharded, total, squares.cpu()).sqrt()

    def gradient_norm(self, network: Network) -> Tensor:
        own = gradients(network)
        sharded = get_total_norm([g for name, g in own.items() if name in self.dims]).square()
        dist.all_reduce(sharded)
        replicated = get_total_norm([g for name, g in own.items() if name not in self.dims])
        return (sharded + replicated.square()).sqrt()

    def whole_network(self, network: Network) -> Network:
        head = copy.deepcopy(self.empty_head).to_empty(device=self.world.device)
        state = {f"head.{name}": tensor for name, tensor in network.head.state_dict().items()}
        with torch.no_grad():
            for name, tensor in self.whole(state):
                head.get_parameter(name.removeprefix("head.")).copy_(tensor)
        return Network(network.trunk, network.spp, head)
