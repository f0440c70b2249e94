"""compile=true: each part of the network is and stays one graph, whatever wraps it."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

from engine.distributed import World
from engine.hybrid import ShardedHead, gradients_of_all
from models.network import Network, build_network
from tests.conftest import composed


@pytest.fixture
def group() -> Iterator[None]:
    """A process group that has only this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch._dynamo.reset()
    counters.clear()
    yield
    dist.destroy_process_group()


def gradients(connected: nn.Module, network: Network) -> dict[str, Tensor]:
    """Gradients of two micro-batches; DDP sends them after the second."""
    generator = torch.Generator().manual_seed(0)
    for last in (False, True):
        for module in connected.modules():
            if isinstance(module, DistributedDataParallel):
                module.require_backward_grad_sync = last
        images = torch.randn(2, 3, 64, 64, generator=generator)
        connected(images, torch.arange(2)).square().sum().backward()
    named = network.named_parameters()
    copies = {name: p.grad.clone() for name, p in named if p.grad is not None}
    network.zero_grad()
    return copies


@pytest.mark.parametrize("parallel", ["ddp", "hybrid"])
def test_a_part_is_one_graph(group: None, parallel: str) -> None:
    config = composed("model=small14", "act=prelu", "model.fc=[16,16]")
    network = build_network(config.model, config.act, config.init, 10)
    if parallel == "hybrid":
        world = World(0, 1, torch.device("cpu"))
        network = Network(network.trunk, network.spp, ShardedHead(network.head, world))
        gradients_of_all(network.head, world)
    expected = gradients(network, network)
    compiled = network.compiled(backend="eager")
    connected: nn.Module = DistributedDataParallel(compiled)
    if parallel == "hybrid":
        connected = Network(DistributedDataParallel(compiled.trunk), compiled.spp, compiled.head)
    torch.testing.assert_close(gradients(connected, network), expected)
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]
    network(torch.zeros(1, 3, 64, 64))
    assert counters["stats"]["unique_graphs"] == 3  # evaluation is not compiled
