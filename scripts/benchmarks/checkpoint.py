"""Training time lost to a checkpoint that is written in the background, or with training waiting.

The trainer's own steps and saves, on one batch of random data. Stretches of steps with and without
a checkpoint alternate. A stretch lasts until the checkpoint is on disk: what the write takes from
the steps beside it (cores, memory, bus) counts as lost, too.
"""

import itertools
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, NamedTuple, NoReturn

import numpy as np
import torch

from common.errors import refusing
from configs.schema import TrainConfig
from configs.store import compose_config
from data.loading import Batch
from data.sources.index import Dataset, ImageIndex
from engine.checkpoint import State
from engine.distributed import World
from engine.log import Log
from engine.parallel import open_parallel
from engine.precision import set_precision
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
    seconds_of,
)
from scripts.benchmarks.train import random_batch, training_step


@dataclass(frozen=True)
class CheckpointRow(Row):
    """What one checkpoint costs; medians over the rounds."""

    model: str
    seconds_lost: float  # of training
    seconds_held: float  # while training waits
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
        or a full disk.
        """
        precision = set_precision(self.precision, torch.device(self.device))
        config = self._config("sync")
        with refusing(ValueError):  # a crop too small for the network
            describe(config.model, config.act, config.init, NUM_CLASSES, self.crop)
        step = training_step(config, precision, self.batch)
        batch = random_batch(self.batch, self.crop)  # the same in all steps: others might diverge
        rows = []
        for path in self.paths:
            with TemporaryDirectory(prefix="benchmark-", dir=self.folder) as folder:
                trainer = _open_trainer(self._config(path), step, Path(folder))
                saves = self._save(trainer, batch)
                size = (Path(folder) / "checkpoints" / "last.pt").stat().st_size
            lost, held, to_disk = np.median(saves, axis=0).round(3).tolist()
            rows.append(
                CheckpointRow(path, self.model, lost, held, to_disk, rounded(size / 1e9, 3))
            )
        return rows

    def _config(self, path: str) -> TrainConfig:
        keys = [f"model={self.model}", f"batch_size={self.batch}"]
        keys.append(f"checkpoint.asynchronous={path == 'async'}")
        return compose_config(keys, TrainConfig)

    def _save(self, trainer: "_TimedTrainer", batch: Batch) -> list[Save]:
        """What the checkpoint of each round cost."""
        train_one_step = partial(trainer.train_one_step, itertools.repeat(batch))
        saves = []
        with trainer.writer:
            seconds_of(train_one_step, 2)  # warm-up
            trainer.save("last.pt")
            trainer.writer.wait()
            train_one_step()
            for _ in range(self.rounds):
                step_seconds = seconds_of(train_one_step, self.steps) / self.steps
                begin, steps = now(), 0
                trainer.save("last.pt")
                while steps < self.steps or not trainer.seconds_to_disk:
                    train_one_step()
                    steps += 1
                lost = now() - begin - steps * step_seconds
                saves.append(Save(lost, trainer.seconds_held, trainer.seconds_to_disk))
        return saves


class _TimedTrainer(Trainer):
    """Times its saves: until training goes on, and until the file is on disk."""

    def save(self, name: str, ends: int | None = None) -> None:
        self.seconds_to_disk, self.began = 0.0, now()
        super().save(name, ends)
        self.seconds_held = time.perf_counter() - self.began

    def write(self, name: str, ends: int | None, state: State) -> None:
        super().write(name, ends, state)
        self.seconds_to_disk = time.perf_counter() - self.began


def _open_trainer(config: TrainConfig, step: TrainingStep, folder: Path) -> _TimedTrainer:
    """For single steps and saves: it has neither images nor a log."""
    (folder / "checkpoints").mkdir()
    assert isinstance(step.network, Network)
    world = World(0, 1, step.precision.device)
    index = ImageIndex(["class"], np.zeros(1, np.int64), "", np.full(1, b"image.JPEG"))
    trainer = _TimedTrainer(
        config=config,
        dataset=Dataset(index, index),
        world=world,
        folder=folder,
        parallel=open_parallel("ddp", world),
        network=step.network,
        step=step,
        batches=_never_called,
        validate=_never_called,
    )
    trainer.log = Log(folder, step=0, validated=0, total=0, active=False)
    return trainer


def _never_called(*_: object) -> NoReturn:
    raise AssertionError
