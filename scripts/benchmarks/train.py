"""Images per second of the training step: ours, and the same network in a plain loop.

Data is random and already decoded: loading is measured by `benchmark.py data`. mfu is the rate of
multiply-adds against what one large matrix product of the same precision reaches on this device.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from configs.schema import TrainConfig
from configs.store import compose_config
from data.loading import Batch
from data.normalise import load_mean
from engine.distributed import World
from engine.optim import build_optimizer
from engine.parallel import Replicas
from engine.precision import Precision, set_precision
from engine.step import TrainingStep
from models.describe import describe
from models.network import Network, build_network

WAYS = {
    "ours": "uint8 images, channels last, masks from keys (compiled with --compile)",
    "plain_nchw": "float images, NCHW, torch's dropout and loop",
    "plain_channels_last": "the same, channels last",
}
_CLASSES = 1000


@dataclass(frozen=True)
class TrainLoad:
    """What is measured."""

    model: str = "small14"
    batch: int = 16
    steps: int = 3  # timed in a round
    rounds: int = 3
    crop: int = 224
    precision: str = "fp32"
    compile: bool = False
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")


def train_rows(what: TrainLoad) -> list[dict[str, Any]]:
    """Rows {path, model, batch, precision, images_per_second, mfu}; the best round counts.

    Raises UserError for a precision that the device cannot do.
    """
    precision = set_precision(what.precision, torch.device(what.device))
    config = compose_config([f"model={what.model}", f"compile={what.compile}"], TrainConfig)
    cost = describe(config.model, config.act, config.init, _CLASSES, what.crop).multiply_adds
    peak = _matmul_rate(precision)
    ways = {
        "ours": _ours(config, what, precision),
        "plain_nchw": _plain(config, what, precision, torch.contiguous_format),
        "plain_channels_last": _plain(config, what, precision, torch.channels_last),
    }
    best = dict.fromkeys(ways, float("inf"))
    for number in range(what.rounds + 1):
        for path, step in ways.items():
            seconds = seconds_of(step, what.steps)
            if number:  # the first round warms up
                best[path] = min(best[path], seconds)
    rows = []
    for path, seconds in best.items():
        rate = what.batch * what.steps / seconds
        # Backward costs twice what forward does; a multiply-add is two operations.
        mfu = 6 * cost * rate / peak
        facts = {"model": what.model, "batch": what.batch, "precision": what.precision}
        speed = {"images_per_second": float(f"{rate:.4g}"), "mfu": float(f"{mfu:.3g}")}
        rows.append({"path": path, **facts, **speed})
    return rows


def train_table(rows: list[dict[str, Any]], what: TrainLoad) -> str:
    """The rows for people."""
    head = f"model {what.model}, batch {what.batch}, {what.precision}, {what.device}"
    lines = [head, "", f"{'path':20} {'images/s':>9} {'mfu':>6}"]
    for row in rows:
        numbers = f"{row['images_per_second']:9.4g} {row['mfu']:6.3f}"
        lines.append(f"{row['path']:20} {numbers}  {WAYS[row['path']]}")
    return "\n".join(lines)


def _network(config: TrainConfig, what: TrainLoad) -> Network:
    parts = (config.model, config.act, config.init, _CLASSES)
    return build_network(*parts).to(what.device)


def _ours(config: TrainConfig, what: TrainLoad, precision: Precision) -> Callable[[], Any]:
    network = _network(config, what).to(memory_format=torch.channels_last)
    mean = load_mean("channel").to(what.device)
    optimizer = build_optimizer(network, config)
    step = TrainingStep(
        network,
        optimizer,
        mean,
        precision,
        what.batch,
        gradient_norm=partial(Replicas(World(0, 1, precision.device)).gradient_norm, network),
        compiled=config.compile,
    )
    images = torch.randint(256, (what.batch, what.crop, what.crop, 3), dtype=torch.uint8)
    labels = torch.randint(_CLASSES, (what.batch,))
    keys = torch.randint(2**62, (what.batch,))
    none = torch.zeros(what.batch, dtype=torch.bool)
    batch = Batch(images, labels, torch.zeros(what.batch, 3), keys, labels, none)
    return lambda: step(batch)


def _plain(
    config: TrainConfig, what: TrainLoad, precision: Precision, layout: torch.memory_format
) -> Callable[[], Any]:
    network = _network(config, what).to(memory_format=layout)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    shape = (what.batch, 3, what.crop, what.crop)
    images = (50 * torch.randn(shape)).to(what.device).contiguous(memory_format=layout)
    labels = torch.randint(_CLASSES, (what.batch,), device=what.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            head = network.head
            x = head.rect1(head.fc1(network.spp(network.trunk(images))))
            x = head.rect2(head.fc2(F.dropout(x)))
            loss = F.cross_entropy(head.fc3(F.dropout(x)).float(), labels)
        loss.backward()
        optimizer.step()

    return step


def seconds_of(step: Callable[[], Any], count: int = 1) -> float:
    """Seconds that `count` calls take, work of the GPU included."""
    _synchronise()
    start = time.perf_counter()
    for _ in range(count):
        step()
    _synchronise()
    return time.perf_counter() - start


def _matmul_rate(precision: Precision) -> float:
    """Operations per second of one large matrix product on random numbers."""
    size = 8192 if precision.device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=precision.device)

    def product() -> None:
        with precision.autocast():
            a @ b

    return 2 * size**3 / min(seconds_of(product) for _ in range(8))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
