"""How a network is laid out over the processes, and how a checkpoint holds all of it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from engine.checkpoint import State
from engine.distributed import World
from engine.optim import SGD, OptimizerState
from models.network import Network


class Parallel:
    """parallel=ddp: the whole network on every process; the backward pass averages gradients.

    engine/hybrid.py overrides it for parallel=hybrid. All processes call each method together,
    except `part`.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def share_out(self, network: Network) -> Network:
        """This process's part of a network, with the same names; called once, on the CPU."""
        return network

    def connect(self, network: Network) -> nn.Module:
        """The part as the training step calls it, with this process's rows of the batch.

        After the backward pass every parameter has the gradient of the mean over all rows.
        """
        return self.world.replicate(network)

    def whole(self, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Whole parameters (or gradients, or momentum), by name, as a single process has them."""
        yield from tensors.items()

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a parameter, or of its momentum."""
        return whole

    def norms(self, tensors: dict[str, Tensor]) -> Tensor:
        """Euclidean norms of the whole parameters or gradients, [number of them]."""
        return torch.stack(torch._foreach_norm(list(tensors.values())))

    def gradient_norm(self, network: Network) -> Tensor:
        """Euclidean norm of the whole gradient, on the device, without waiting for it."""
        return get_total_norm(gradients(network).values())

    def whole_network(self, network: Network) -> Network:
        """The whole network with its current weights, on each process, for validation."""
        return network


def gradients(network: nn.Module) -> dict[str, Tensor]:
    """The gradients on this process, by name of the parameter."""
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def open_parallel(choice: str, world: World) -> Parallel:
    """The layout that `parallel=` names; a single process has nothing to divide."""
    if choice == "ddp" or world.size == 1:
        return Parallel(world)
    from engine.hybrid import Hybrid  # takes half a second to import

    return Hybrid(world)


def _in_order(optimizer: SGD, network: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and momentum buffers of the parameters, in the optimiser's order."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [(names[parameter], buffer) for parameter, buffer in optimizer.buffers.items()]


def _on_main(parallel: Parallel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors, on the main process; gathered one by one to save device memory."""
    gathered = {}
    for name, whole in parallel.whole(tensors):
        if parallel.world.is_main:
            gathered[name] = whole if whole is tensors[name] else whole.cpu()
    return gathered


def whole_state(
    parallel: Parallel, network: Network, optimizer: SGD
) -> tuple[dict[str, Tensor], OptimizerState]:
    """The states of network and optimiser as a single process would have them.

    All processes call it; all but the main one get empty dicts.
    """
    momentum = _in_order(optimizer, network)
    whole = _on_main(parallel, dict(momentum))
    buffers = enumerate(whole[name] for name, _ in momentum if name in whole)
    state: OptimizerState = {"state": {i: {"momentum_buffer": buffer} for i, buffer in buffers}}
    return _on_main(parallel, network.state_dict()), state


@torch.no_grad()
def load_whole_state(
    parallel: Parallel,
    network: Network,
    optimizer: SGD,
    state: State,
) -> None:
    """Load this process's part of a checkpoint, written by any number of processes."""
    weights = state["network"].items()
    network.load_state_dict({name: parallel.part(name, whole) for name, whole in weights})
    momentum = _in_order(optimizer, network)
    for i, saved in state["optimizer"]["state"].items():
        name, buffer = momentum[i]
        buffer.copy_(parallel.part(name, saved["momentum_buffer"]))
