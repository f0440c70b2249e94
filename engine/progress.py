"""How far a run is, and what its last steps measured."""

import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from engine.distributed import World
from engine.step import StepResult


@dataclass
class Progress:
    """How far a run is: with the tensors, all that a checkpoint remembers."""

    step: int = 0  # optimiser steps done
    val_errors: list[float] = field(default_factory=list)  # top-1 error (%) of each epoch done
    best: float = math.inf  # lowest of all validations
    validated: int = 0  # steps done at the last validation
    window: list[float] = field(default_factory=list)  # losses since the last metrics line
    norms: list[float] = field(default_factory=list)  # gradient norms since then
    recent: list[float] = field(default_factory=list)  # losses of the last steps
    rose_at: int | None = None  # step since which the loss is far above their median


@dataclass(frozen=True)
class TrainMetrics:
    """A line of metrics.jsonl of kind train: means over the steps since the last one."""

    epoch: int
    loss: float
    lr: float
    gradient_norm: float | None  # Euclidean, over all parameters
    images_per_second: float  # of all processes
    data_wait: float  # fraction of the time, of this process


class ValErrors(Protocol):
    """What a validation measures."""

    @property
    def images(self) -> int: ...  # seen

    @property
    def top1_error(self) -> float: ...  # percent

    @property
    def top5_error(self) -> float: ...  # percent


class StepRecord(NamedTuple):
    """One step, over all processes."""

    step: int
    loss: float
    gradient_norm: float


class StepStatistics:
    """Losses and gradient norms, on the device until they are needed, and the time of steps."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.unread: list[tuple[int, StepResult]] = []
        self.restart(0)

    def restart(self, step: int) -> None:
        """Start the clock after `step` steps; losses stay."""
        self.started, self.seconds_waited, self.first_step = time.perf_counter(), 0.0, step

    def add(self, step: int, result: StepResult) -> None:
        """Keep what a step has returned."""
        self.unread.append((step, result))

    def leave_out_a_step(self) -> None:
        """The images of a skipped step do not count in the rate."""
        self.first_step += 1

    def rates(self, step: int, batch_size: int) -> dict[str, float]:
        """Images per second, and the fraction of time spent waiting for data, since the restart."""
        seconds = time.perf_counter() - self.started
        images = (step - self.first_step) * batch_size
        return {"images_per_second": images / seconds, "data_wait": self.seconds_waited / seconds}

    def read(self) -> list[StepRecord]:
        """The steps not read before; all processes read together."""
        if not self.unread:
            return []
        steps = [step for step, _ in self.unread]
        results = torch.stack([torch.stack(result) for _, result in self.unread])
        self.unread = []
        values = self.world.sum(results.double()) / self.world.size  # norms are equal everywhere
        return [StepRecord(step, *row) for step, row in zip(steps, values.tolist(), strict=True)]
