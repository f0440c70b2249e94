"""Run under torchrun: one step with each `parallel=`, as each process sees it; prints JSON.

Arguments: overrides of train.py. The truth is the same step on the whole batch in one process.
"""

import json
import sys
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import engine.hybrid
from configs.schema import TrainConfig
from configs.store import compose_config
from data.loading import Batch
from engine.distributed import World, open_world
from engine.optim import build_optimizer
from engine.parallel import open_parallel, whole_state
from engine.precision import set_precision
from engine.step import TrainingStep
from models.network import Network, build_network

CLASSES = 10


class Traffic:
    """Counts the bytes that this process sends if collectives run as rings."""

    def __init__(self, world: World) -> None:
        self.sent, self.ring = 0.0, (world.size - 1) / world.size
        gather, scatter = engine.hybrid._all_gather, engine.hybrid._reduce_scatter

        def counted_gather(part: Tensor) -> Tensor:
            parts = gather(part)
            self.sent += self.ring * parts.nbytes
            return parts

        def counted_scatter(parts: Tensor) -> Tensor:
            self.sent += self.ring * parts.nbytes
            return scatter(parts)

        engine.hybrid._all_gather = counted_gather
        engine.hybrid._reduce_scatter = counted_scatter

    def hook(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """For DDP: average a bucket, and count it."""
        buffer = bucket.buffer()
        self.sent += 2 * self.ring * buffer.nbytes
        dist.all_reduce(buffer)
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(buffer / dist.get_world_size())
        return future


def build(config: TrainConfig) -> Network:
    network = build_network(config.model, config.act, config.init, CLASSES, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # so that the gradients of all layers have about the same size
        for name, parameter in network.head.named_parameters():
            if name.endswith(".weight"):
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network


def batch_of(size: int, crop: int) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (size, crop, crop, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    colours = torch.randn(size, 3, generator=generator)
    keys = torch.randint(2**62, (size,), generator=generator)
    return Batch(images, labels, colours, keys, torch.arange(size), torch.zeros(size).bool())


def truth(config: TrainConfig, batch: Batch) -> dict[str, Tensor]:
    """Gradients of the mean loss of the whole batch."""
    network = build(config)
    images = batch.images.permute(0, 3, 1, 2).float() + batch.colours[:, :, None, None]
    F.cross_entropy(network(images, batch.keys), batch.labels).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def rows(batch: Batch, share: slice) -> Batch:
    return Batch(**{name: value[share] for name, value in vars(batch).items()})


def one_step(config: TrainConfig, world: World, parallel: str) -> dict[str, object]:
    config.parallel = parallel
    layout = open_parallel(parallel, world)
    network = layout.share_out(build(config))
    connected: nn.Module = layout.connect(network)
    optimizer = build_optimizer(network, config)
    precision = set_precision("fp32", world.device)
    micro = config.micro_batch or config.batch_size // world.size
    step = TrainingStep(
        connected,
        optimizer,
        torch.zeros(1, 1, 3),
        precision,
        micro,
        gradient_norm=partial(layout.gradient_norm, network),
        clip_norm=None,
    )
    traffic = Traffic(world)
    for replica in step.replicas:
        replica.register_comm_hook(None, traffic.hook)
    batch = batch_of(config.batch_size, config.data.crop)
    result = step(rows(batch, world.share(config.batch_size)))
    loss = world.sum(result.loss) / world.size
    sent = traffic.sent
    expected = truth(config, batch)
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    whole = dict(layout.whole(gradients))
    norms = dict(zip(gradients, layout.norms(gradients).tolist(), strict=True))
    weights, state = whole_state(layout, network, optimizer)
    complete = layout.whole_network(network)
    parameters = list(network.parameters())
    return {
        "parallel": parallel,
        "rank": world.rank,
        "loss": loss.item(),
        "worst_gradient": max(error(whole[name], expected[name]) for name in expected),
        "norm_error": abs(result.gradient_norm.item() / whole_norm(expected) - 1),
        "worst_norm": max(abs(norms[n] / expected[n].norm().item() - 1) for n in expected),
        "momentum": sum(b["momentum_buffer"].numel() for b in state["state"].values()),
        "same_network": all(torch.equal(t, complete.get_parameter(n)) for n, t in weights.items()),
        "sent": sent,
        "kept": sum(2 * p.nbytes + optimizer.buffers[p].nbytes for p in parameters),
        "fc3_bias": network.head.fc3.bias.tolist(),
    }


def whole_norm(gradients: dict[str, Tensor]) -> float:
    return torch.cat([g.double().flatten() for g in gradients.values()]).norm().item()


def error(ours: Tensor, expected: Tensor) -> float:
    assert ours.shape == expected.shape
    return ((ours - expected).norm() / expected.norm()).item()


def main() -> None:
    torch.set_num_threads(1)
    config = compose_config(sys.argv[1:], TrainConfig)
    with open_world("cpu", 600) as world:
        for parallel in ("ddp", "hybrid"):
            results: list[object] = [None] * world.size
            dist.all_gather_object(results, one_step(config, world, parallel))
            if world.is_main:
                print(json.dumps(results))


if __name__ == "__main__":
    main()
