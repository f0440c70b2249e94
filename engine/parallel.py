"""How a network lies over the processes: `parallel=ddp`, whole on each, or `parallel=hybrid`.

Both kinds answer the same calls; what concerns other processes is done together by all of them.
One process is the first kind, and does nothing.
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
    """What training needs of either kind."""

    world: World

    def share_out(self, network: Network) -> Network:
        """This process's part of a network, the same modules and names; called once, on the CPU."""
        ...

    def connect(self, network: Network) -> nn.Module:
        """The part as the step calls it: each process its rows of the batch, forward and backward.

        Every parameter then has the gradient of the mean over all rows of all processes.
        """
        ...

    def whole(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Parameters (or gradients, or momentum), by name, as one process would have them."""
        ...

    def part(self, name: str, whole: Tensor) -> Tensor:
        """What this process holds of a parameter, or of its momentum."""
        ...

    def norms(self, tensors: dict[str, Tensor]) -> Tensor:
        """Euclidean norms of the whole parameters or gradients, [number of them]."""
        ...

    def gradient_norm(self, network: Network) -> Tensor:
        """Euclidean norm of the whole gradient, on the device, without waiting for it."""
        ...

    def whole_network(self, network: Network) -> Network:
        """A network for testing, complete on each process, with the weights of now."""
        ...


class Replicas:
    """parallel=ddp: the whole network on every process, gradients averaged in the backward pass."""

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
        found = gradients(network)
        divided = get_total_norm([g for name, g in found.items() if name in self.dims]).square()
        dist.all_reduce(divided)
        copied = get_total_norm([g for name, g in found.items() if name not in self.dims])
        return (divided + copied.square()).sqrt()

    def whole_network(self, network: Network) -> Network:
        head = copy.deepcopy(self.empty_head).to_empty(device=self.world.device)
        state = {f"head.{name}": tensor for name, tensor in network.head.state_dict().items()}
        with torch.no_grad():
            for name, tensor in self.whole(state):
                head.get_parameter(name.removeprefix("head.")).copy_(tensor)
        return Network(network.trunk, network.spp, head)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """The gradients that this process holds, by name of their parameter."""
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def open_parallel(choice: str, world: World) -> Parallel:
    """The kind that `parallel=` names; for one process there is nothing to divide."""
    return Hybrid(world) if choice == "hybrid" and world.size > 1 else Replicas(world)


def _names(optimizer: torch.optim.SGD, network: nn.Module) -> list[str]:
    """Names of the parameters in the order in which the optimiser numbers them."""
    known = {parameter: name for name, parameter in network.named_parameters()}
    return [known[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _on_main(parallel: Parallel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors on the main process, one after the other: devices need not hold them."""
    found = {}
    for name, whole in parallel.whole(tensors):
        if parallel.world.is_main:
            found[name] = whole if whole is tensors[name] else whole.cpu()
    return found


def whole_state(
    parallel: Parallel, network: Network, optimizer: torch.optim.SGD
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dicts of network and optimiser as one process would have them.

    On the main process; all help, the others get empty ones.
    """
    names, state = _names(optimizer, network), optimizer.state_dict()
    momentum = {names[i]: held["momentum_buffer"] for i, held in state["state"].items()}
    whole = _on_main(parallel, momentum)
    places = {name: i for i, name in enumerate(names)}
    state["state"] = {places[name]: {"momentum_buffer": whole[name]} for name in whole}
    return _on_main(parallel, network.state_dict()), state


def load_whole_state(
    parallel: Parallel,
    network: Network,
    optimizer: torch.optim.SGD,
    weights: dict[str, Tensor],
    state: dict[str, Any],
) -> None:
    """Take this process's part of what whole_state gave, on any number of processes."""
    network.load_state_dict({name: parallel.part(name, whole) for name, whole in weights.items()})
    names = _names(optimizer, network)
    momentum = {
        i: {"momentum_buffer": parallel.part(names[i], held["momentum_buffer"])}
        for i, held in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": momentum})
