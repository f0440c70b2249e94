"""Training time lost for a checkpoint: written beside training, and with training waiting.

The real loop, step and save, on one batch of random data: stretches of steps without a checkpoint
and with one in turn. A stretch lasts until the checkpoint is on the disk, so that what the write
takes from the steps beside it (cores, memory, bus) counts as lost, too.
"""

import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from common.errors import refusing
from configs.schema import TrainConfig
from configs.store import compose_config
from data.loading import Batch, OnEvent
from data.normalise import load_mean
from data.sources.index import Dataset, ImageIndex
from engine.distributed import World
from engine.optim import build_optimizer
from engine.parallel import open_parallel
from engine.precision import set_precision
from engine.progress import ValErrors
from engine.step import TrainingStep
from engine.trainer import Trainer
from models.describe import describe
from models.network import Network, build_network

WAYS = {"sync": "checkpoint.asynchronous=false", "async": "checkpoint.asynchronous=true, default"}
_CLASSES, _PER_CLASS = 1000, 1281


@dataclass(frozen=True)
class CheckpointLoad:
    """What is measured."""

    model: str = "C"
    batch: int = 1
    crop: int = 64
    precision: str = "fp32"
    steps: int = 10  # in a stretch, at least
    rounds: int = 3  # of a stretch without a checkpoint and one with it
    folder: Path | None = None  # where checkpoints are written; None: the system's temporary folder
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")


class _EnoughError(Exception):
    """Everything is measured."""


class _Timed(Trainer):
    """A run that notes when its saves begin, let training go on, and are on the disk."""

    def save(self, name: str, ends: int | None = None) -> None:
        self.on_disk, self.began = 0.0, _now()
        super().save(name, ends)
        self.held = time.perf_counter() - self.began

    def write(self, name: str, ends: int | None, state: dict[str, Any]) -> None:
        super().write(name, ends, state)
        self.on_disk = time.perf_counter() - self.began


def checkpoint_rows(what: CheckpointLoad) -> list[dict[str, Any]]:
    """Rows {path, model, seconds_lost, seconds_held, seconds_to_disk, gigabytes}, medians.

    seconds_lost: of training, for one checkpoint; seconds_held: those in which the loop stands
    still. The first checkpoint, for whose copy memory is taken, is not counted. Raises UserError
    for a precision that the device cannot do, a crop too small, or a disk that is full.
    """
    parts = _parts(what)
    rows = []
    for path in WAYS:
        with TemporaryDirectory(prefix="benchmark-", dir=what.folder) as folder:
            measured = _measure(path == "async", Path(folder), what, *parts)
            size = (Path(folder) / "checkpoints" / "last.pt").stat().st_size
        seconds = {key: round(median(found[key] for found in measured), 3) for key in measured[0]}
        gigabytes = float(f"{size / 1e9:.3g}")
        rows.append({"path": path, "model": what.model, **seconds, "gigabytes": gigabytes})
    return rows


def checkpoint_table(rows: list[dict[str, Any]], what: CheckpointLoad) -> str:
    """The rows for people."""
    size = rows[0]["gigabytes"]
    head = f"model {what.model}, last.pt of {size} GB, {what.device}; seconds of a checkpoint"
    lines = [head, "", f"{'path':6} {'lost':>8} {'held up':>8} {'to disk':>8}"]
    for row in rows:
        numbers = [row[f"seconds_{name}"] for name in ("lost", "held", "to_disk")]
        lines.append(
            f"{row['path']:6} {' '.join(f'{n:8.3f}' for n in numbers)}  {WAYS[row['path']]}"
        )
    return "\n".join(lines)


def _parts(what: CheckpointLoad) -> tuple[World, Dataset, TrainingStep, Batch]:
    """A network in training, on random images of a data set of ImageNet's size."""
    precision = set_precision(what.precision, torch.device(what.device))
    world = World(0, 1, precision.device)
    config = compose_config([f"model={what.model}"], TrainConfig)
    with refusing(ValueError):  # a crop too small for the network
        describe(config.model, config.act, config.init, _CLASSES, what.crop)
    network = build_network(config.model, config.act, config.init, _CLASSES)
    network = network.to(what.device).to(memory_format=torch.channels_last)
    mean = load_mean("channel").to(what.device)
    step = TrainingStep(
        network,
        build_optimizer(network, config),
        mean,
        precision,
        what.batch,
        gradient_norm=partial(open_parallel("ddp", world).gradient_norm, network),
    )
    names = [f"n{number:08d}" for number in range(_CLASSES)]
    labels = np.repeat(np.arange(_CLASSES), _PER_CLASS)
    index = ImageIndex(names, labels, "", np.full(len(labels), b"image.JPEG"))
    images = torch.randint(256, (what.batch, what.crop, what.crop, 3), dtype=torch.uint8)
    keys, shown = torch.randint(2**62, (what.batch,)), torch.randint(_CLASSES, (what.batch,))
    none = torch.zeros(what.batch, dtype=torch.bool)
    batch = Batch(images, shown, torch.zeros(what.batch, 3), keys, shown, none)
    return world, Dataset(index, index, _CLASSES), step, batch


def _measure(
    asynchronous: bool,
    folder: Path,
    what: CheckpointLoad,
    world: World,
    dataset: Dataset,
    step: TrainingStep,
    batch: Batch,
) -> list[dict[str, float]]:
    """seconds_lost, seconds_held and seconds_to_disk of each round."""
    choices = [f"model={what.model}", f"batch_size={what.batch}", "log_every=1000000000"]
    choices += ["checkpoint.every_steps=0", f"checkpoint.asynchronous={asynchronous}"]
    config = compose_config(choices, TrainConfig)
    measured: list[dict[str, float]] = []

    def course(_start: int, _stop: int, _on_event: OnEvent) -> Generator[Batch]:
        yield from [batch, batch]
        run.save("last.pt")
        run.writer.wait()
        yield batch
        for _ in range(what.rounds):
            begin = _now()
            yield from [batch] * what.steps
            each, begin, done = (_now() - begin) / what.steps, _now(), 0
            run.save("last.pt")
            while done < what.steps or not run.on_disk:
                yield batch
                done += 1
            lost = {"seconds_lost": _now() - begin - done * each}
            measured.append({**lost, "seconds_held": run.held, "seconds_to_disk": run.on_disk})
        raise _EnoughError

    def no_validation(_on_event: OnEvent) -> ValErrors:
        raise _EnoughError

    (folder / "checkpoints").mkdir()
    network, parallel = step.network, open_parallel("ddp", world)
    assert isinstance(network, Network)
    run = _Timed(config, dataset, world, folder, parallel, network, step, course, no_validation)
    with suppress(_EnoughError):
        run.fit()
    return measured


def _now() -> float:
    """The time once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
