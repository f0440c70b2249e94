"""How a network lies over the processes: `parallel=ddp`, whole on each, or `parallel=hybrid`.

Both have the same methods; all processes call those together that concern other processes. A single
process is the first kind, and its methods do nothing.
"""

import copy
from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from engine.distributed import World
from engine.hybrid import ShardedHead, gather, gradients_of_all
from models.network import Network


class Parallel(Protocol):
    """What training needs of both."""

    world: World

    def share_out(self, network: Network) -> Network:
        """This process's part of a network, with the same names; called once, on the CPU."""
        ...

    def connect(self, network: Network) -> nn.Module:
        """The part as the training step calls it, with this process's rows of the batch.

        After the backward pass every parameter has the gradient of the mean over all rows.
        """
        ...

    def whole(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters (or gradients, or momentum), by name, as a single process has them."""
        ...

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a parameter, or of its momentum."""
        ...

    def norms(self, tensors: dict[str, Tensor]) -> Tensor:
        """Euclidean norms of the whole parameters or gradients, [number of them]."""
        ...

    def gradient_norm(self, network: Network) -> Tensor:
        """Euclidean norm of the whole gradient, on the device, without waiting for it."""
        ...

    def whole_network(self, network: Network) -> Network:
        """The whole network with the present weights, on each process, for validation."""
        ...


class Replicas:
    """parallel=ddp: the whole network on every process; the backward pass averages gradients."""

    def __init__(self, world: World) -> None:
        self.world = world

    def share_out(self, network: Network) -> Network:
        return network

    def connect(self, network: Network) -> nn.Module:
        return self.world.replicate(network)

    def whole(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        yield from tensors.items()

    def part(self, name: str, whole: Tensor) -> Tensor:
        return whole

    def norms(self, tensors: dict[str, Tensor]) -> Tensor:
        return torch.stack(torch._foreach_norm(list(tensors.values())))

    def gradient_norm(self, network: Network) -> Tensor:
        return get_total_norm(gradients(network).values())

    def whole_network(self, network: Network) -> Network:
        return network


class Hybrid:
    """parallel=hybrid: the convolutions on every process, the fc layers divided among them."""

    def __init__(self, world: World) -> None:
        self.world = world

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
        held = gradients(network)
        sharded = get_total_norm([g for name, g in held.items() if name in self.dims]).square()
        dist.all_reduce(sharded)
        copied = get_total_norm([g for name, g in held.items() if name not in self.dims])
        return (sharded + copied.square()).sqrt()

    def whole_network(self, network: Network) -> Network:
        head = copy.deepcopy(self.empty_head).to_empty(device=self.world.device)
        state = {f"head.{name}": tensor for name, tensor in network.head.state_dict().items()}
        with torch.no_grad():
            for name, tensor in self.whole(state):
                head.get_parameter(name.removeprefix("head.")).copy_(tensor)
        return Network(network.trunk, network.spp, head)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """The gradients that this process holds, by the name of their parameter."""
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def open_parallel(choice: str, world: World) -> Parallel:
    """What `parallel=` names; a single process has nothing to divide."""
    return Hybrid(world) if choice == "hybrid" and world.size > 1 else Replicas(world)


def _names(optimizer: torch.optim.SGD, network: nn.Module) -> list[str]:
    """Names of the parameters, in the order of the optimiser's numbers."""
    known = {parameter: name for name, parameter in network.named_parameters()}
    return [known[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _on_main(parallel: Parallel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors on the main process, one by one, so that devices need not hold them all."""
    gathered = {}
    for name, whole in parallel.whole(tensors):
        if parallel.world.is_main:
            gathered[name] = whole if whole is tensors[name] else whole.cpu()
    return gathered


def whole_state(
    parallel: Parallel, network: Network, optimizer: torch.optim.SGD
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dicts of network and optimiser as a single process would have them.

    Called by all processes; all but the main one get empty dicts.
    """
    names, state = _names(optimizer, network), optimizer.state_dict()
    momentum = {names[i]: held["momentum_buffer"] for i, held in state["state"].items()}
    whole = _on_main(parallel, momentum)
    state["state"] = {
        i: {"momentum_buffer": whole[name]} for i, name in enumerate(names) if name in whole
    }
    return _on_main(parallel, network.state_dict()), state


def load_whole_state(
    parallel: Parallel,
    network: Network,
    optimizer: torch.optim.SGD,
    *,
    weights: dict[str, Tensor],
    state: dict[str, Any],
) -> None:
    """Load this process's part of what whole_state returned, on any number of processes."""
    network.load_state_dict({name: parallel.part(name, whole) for name, whole in weights.items()})
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = _names(optimizer, network)
    momentum = {
        i: {"momentum_buffer": _like(own[i], parallel.part(names[i], held["momentum_buffer"]))}
        for i, held in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": momentum})


def _like(parameter: Tensor, values: Tensor) -> Tensor:
    """The values with a parameter's strides: on the CPU, fused SGD does not look at them."""
    return torch.empty_like(parameter, requires_grad=False).copy_(values)
