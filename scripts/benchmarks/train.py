"""Images per second of the training step: ours, and the same network in a plain loop.

The data is random and already on the device: `benchmark.py data` measures loading. mfu is the rate
of multiply-adds relative to that of a large matrix product in the same precision on this device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F

from configs.schema import TrainConfig
from configs.store import compose_config
from data.loading import Batch
from data.normalise import load_mean
from engine.distributed import World
from engine.optim import build_optimizer
from engine.parallel import Parallel
from engine.precision import Precision, set_precision
from engine.step import TrainingStep
from models.describe import describe
from models.network import Network, build_network
from scripts.benchmarks.benchmark import (
    NUM_CLASSES,
    NetworkBenchmark,
    Row,
    option,
    rounded,
    seconds_of,
    time_in_turns,
)


@dataclass(frozen=True)
class TrainRow(Row):
    """The speed of one way to train."""

    model: str
    batch: int
    precision: str
    images_per_second: float  # median of the rounds
    spread: float  # from the slowest to the fastest round, relative to the median
    over_plain: float  # speed relative to plain_channels_last's, median of the rounds
    mfu: float


@dataclass(frozen=True, kw_only=True)
class TrainBenchmark(NetworkBenchmark):
    """The training step, on random data."""

    paths: ClassVar = {
        "ours": "uint8 images, channels last, masks from keys (compiled with --compile)",
        "plain_nchw": "float images, NCHW, torch's dropout and loop",
        "plain_channels_last": "the same, channels last",
    }

    model: str = option("small14", "a file of configs/model/")
    batch: int = option(16, "images a step")
    steps: int = option(3, "steps timed in a round")
    compile: bool = option(False, "ours with torch.compile", action="store_true")
    kernel: str = option("eager", "act.kernel of ours", choices=("eager", "triton"))

    def measure(self) -> list[TrainRow]:
        """One row for each path. Raises UserError for a precision that the device cannot do."""
        precision = set_precision(self.precision, torch.device(self.device))
        ours = [f"compile={self.compile}", f"act.kernel={self.kernel}"]
        config = compose_config([f"model={self.model}", *ours], TrainConfig)
        plain = compose_config([f"model={self.model}", "act.kernel=eager"], TrainConfig)
        network = describe(config.model, config.act, config.init, NUM_CLASSES, self.crop)
        peak = _matmul_rate(precision)
        step = training_step(config, precision, self.batch)
        batch = random_batch(self.batch, self.crop, self.device)
        steps: dict[str, Callable[[], object]] = {
            "ours": partial(step, batch),
            "plain_nchw": self._plain(plain, precision, torch.contiguous_format),
            "plain_channels_last": self._plain(plain, precision, torch.channels_last),
        }
        runs = {path: partial(seconds_of, run, self.steps) for path, run in steps.items()}
        time_in_turns(runs, rounds=1)  # warm-up
        timings = time_in_turns(runs, self.rounds)
        rows = []
        for path, timing in timings.items():
            rate = self.batch * self.steps / timing.median
            rows.append(
                TrainRow(
                    path,
                    self.model,
                    self.batch,
                    self.precision,
                    images_per_second=rounded(rate, 4),
                    spread=timing.spread,
                    over_plain=timing.speed_over(timings["plain_channels_last"]),
                    # Backward costs twice what forward does; a multiply-add is two operations.
                    mfu=rounded(6 * network.multiply_adds * rate / peak, 3),
                )
            )
        return rows

    def _plain(
        self, config: TrainConfig, precision: Precision, layout: torch.memory_format
    ) -> Callable[[], None]:
        """A step as a plain PyTorch program does it."""
        network = _network(config, precision, layout)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        images = 50 * torch.randn(self.batch, 3, self.crop, self.crop, device=self.device)
        images = images.contiguous(memory_format=layout)
        labels = torch.randint(NUM_CLASSES, (self.batch,), device=self.device)

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


def training_step(config: TrainConfig, precision: Precision, batch_size: int) -> TrainingStep:
    """Our step, of a new network of NUM_CLASSES classes."""
    network = _network(config, precision, torch.channels_last)
    return TrainingStep(
        network.compiled() if config.compile else network,
        build_optimizer(network, config),
        load_mean("channel").to(precision.device),
        precision,
        batch_size,
        gradient_norm=partial(Parallel(World(0, 1, precision.device)).gradient_norm, network),
        clip_norm=config.clip_norm,
        compiled=config.compile,
    )


def random_batch(size: int, crop: int, device: str = "cpu") -> Batch:
    """A batch of noise, on a device."""
    with torch.device(device):
        images = torch.randint(256, (size, crop, crop, 3), dtype=torch.uint8)
        labels, keys = torch.randint(NUM_CLASSES, (size,)), torch.randint(2**62, (size,))
        none = torch.zeros(size, dtype=torch.bool)
        return Batch(images, labels, torch.zeros(size, 3), keys, indices=labels, replaced=none)


def _network(config: TrainConfig, precision: Precision, layout: torch.memory_format) -> Network:
    network = build_network(config.model, config.act, config.init, NUM_CLASSES)
    return network.to(precision.device).to(memory_format=layout)


def _matmul_rate(precision: Precision) -> float:
    """Operations per second of one large matrix product on random numbers, without casts."""
    size = 8192 if precision.device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=precision.device)
    with precision.autocast():
        dtype = (a @ b).dtype
    a, b = a.to(dtype), b.to(dtype)
    return 2 * size**3 / min(seconds_of(lambda: a @ b) for _ in range(8))
