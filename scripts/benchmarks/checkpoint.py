"""Training time lost to a checkpoint that is written in the background, or with training waiting.

The real loop, step and save, on one batch of random data. Stretches of steps with and without a
checkpoint alternate. A stretch lasts until the checkpoint is on disk: what the write takes from the
steps beside it (cores, memory, bus) counts as lost, too.
"""

import sys
import time
from collections.abc import Generator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from common.errors import refusing
from configs.schema import TrainConfig
from configs.store import compose_config
from data.loading import Batch, OnEvent
from data.sources.index import Dataset, ImageIndex
from engine.checkpoint import State
from engine.distributed import World
from engine.parallel import open_parallel
from engine.precision import set_precision
from engine.progress import ValErrors
from engine.step import TrainingStep
from engine.trainer import Trainer
from models.describe import describe
from models.network import Network
from scripts.benchmarks.benchmark import (
    NUM_CLASSES,
    NetworkBenchmark,
    Row,
    now,
    option,
    rounded,
)
from scripts.benchmarks.train import random_batch, training_step

_IMAGES_PER_CLASS = 1281  # as in ImageNet


@dataclass(frozen=True)
class CheckpointRow(Row):
    """What one checkpoint costs; medians over the rounds."""

    model: str
    seconds_lost: float  # of training
    seconds_held: float  # while the loop stands still
    seconds_to_disk: float
    gigabytes: float


class Save(NamedTuple):
    """What one checkpoint cost, in seconds, as in CheckpointRow."""

    lost: float
    held: float
    to_disk: float


@dataclass(frozen=True, kw_only=True)
class CheckpointBenchmark(NetworkBenchmark):
    """Training time lost to a checkpoint."""

    paths: ClassVar = {
        "sync": "checkpoint.asynchronous=false",
        "async": "checkpoint.asynchronous=true, default",
    }

    model: str = option("C", "a file of configs/model/")
    crop: int = option(64, "side of the training crop, pixels")
    batch: int = option(1, "images a step")
    steps: int = option(10, "steps of a stretch, at least")
    rounds: int = option(3, "pairs of stretches, with and without a checkpoint")
    folder: Path | None = option(None, "where to write; none: the temporary folder", type=Path)

    def measure(self) -> list[CheckpointRow]:
        """One row for each path. The first checkpoint, which allocates memory, does not count.

        Raises UserError for a precision that the device cannot do, a crop too small for the model,
        or a disk that is full.
        """
        precision = set_precision(self.precision, torch.device(self.device))
        config = self._config(asynchronous=False)
        with refusing(ValueError):  # a crop too small for the network
            describe(config.model, config.act, config.init, NUM_CLASSES, self.crop)
        step = training_step(config, precision, self.batch)
        batch = random_batch(self.batch, self.crop)  # training on another one may diverge
        rows = []
        for path in self.paths:
            config = self._config(asynchronous=path == "async")
            with TemporaryDirectory(prefix="benchmark-", dir=self.folder) as folder:
                saves = self._train(config, step, batch, folder=Path(folder))
                size = (Path(folder) / "checkpoints" / "last.pt").stat().st_size
            lost, held, to_disk = np.median(saves, axis=0).round(3).tolist()
            rows.append(
                CheckpointRow(path, self.model, lost, held, to_disk, rounded(size / 1e9, 3))
            )
        return rows

    def _config(self, asynchronous: bool) -> TrainConfig:
        choices = [f"model={self.model}", f"batch_size={self.batch}", "log_every=1000000000"]
        choices += ["checkpoint.every_steps=0", f"checkpoint.asynchronous={asynchronous}"]
        return compose_config(choices, TrainConfig)

    def _train(
        self, config: TrainConfig, step: TrainingStep, batch: Batch, *, folder: Path
    ) -> list[Save]:
        """Run the loop; returns what the checkpoint of each round cost."""
        saves: list[Save] = []

        def batches(_start: int, _stop: int, _on_event: OnEvent) -> Generator[Batch]:
            yield from [batch, batch]
            run.save("last.pt")
            run.writer.wait()
            yield batch
            for _ in range(self.rounds):
                begin = now()
                yield from [batch] * self.steps
                each, begin, done = (now() - begin) / self.steps, now(), 0
                run.save("last.pt")
                while done < self.steps or not run.on_disk:
                    yield batch
                    done += 1
                saves.append(Save(now() - begin - done * each, run.held, run.on_disk))
            raise _AllMeasured

        def no_validation(_on_event: OnEvent) -> ValErrors:
            raise _AllMeasured

        (folder / "checkpoints").mkdir()
        world, network = World(0, 1, step.precision.device), step.network
        assert isinstance(network, Network)
        run = _TimedRun(
            config=config,
            dataset=_imagenet_sized(),
            world=world,
            folder=folder,
            parallel=open_parallel("ddp", world),
            network=network,
            step=step,
            batches=batches,
            validate=no_validation,
        )
        with redirect_stdout(sys.stderr), suppress(_AllMeasured):  # stdout is for the rows
            run.fit()
        return saves


class _AllMeasured(Exception):
    """Ends the run."""


class _TimedRun(Trainer):
    """A run that times its saves: until training goes on, and until the file is on disk."""

    def save(self, name: str, ends: int | None = None) -> None:
        self.on_disk, self.began = 0.0, now()
        super().save(name, ends)
        self.held = time.perf_counter() - self.began

    def write(self, name: str, ends: int | None, state: State) -> None:
        super().write(name, ends, state)
        self.on_disk = time.perf_counter() - self.began


def _imagenet_sized() -> Dataset:
    """A list of images as long as ImageNet's; none of them is read."""
    names = [f"n{number:08d}" for number in range(NUM_CLASSES)]
    labels = np.repeat(np.arange(NUM_CLASSES), _IMAGES_PER_CLASS)
    index = ImageIndex(names, labels, "", np.full(len(labels), b"image.JPEG"))
    return Dataset(index, index, NUM_CLASSES)
