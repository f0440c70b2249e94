"""How far a run is, what it has measured, and how long the rest takes."""

import math
import time
from collections import deque
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any, Protocol

from configs.schema import TrainConfig

PACE_LINES = 10  # metrics lines that a pace is measured over


@dataclass
class Progress:
    """How far a run is: all that a checkpoint holds besides the tensors."""

    step: int = 0  # optimiser steps done
    val_errors: list[float] = field(default_factory=list)  # top-1 error (%) of each epoch done
    best: float = math.inf  # lowest of all validations
    validated: int = 0  # steps done at the last validation
    window: list[float] = field(default_factory=list)  # losses since the last metrics line
    norms: list[float] = field(default_factory=list)  # gradient norms since then
    recent: list[float] = field(default_factory=list)  # losses of the last steps
    rose_at: int | None = None  # step since which the loss has been far above their median

    @property
    def epoch(self) -> int:
        """The epoch under way, from 0."""
        return len(self.val_errors)


@dataclass(frozen=True)
class TrainMetrics:
    """A line of metrics.jsonl of kind train: means over the steps since the last one."""

    epoch: int
    loss: float
    lr: float
    gradient_norm: float | None  # Euclidean, over all parameters
    images_per_second: float  # of all processes
    data_wait: float  # fraction of this process's time


@dataclass(frozen=True)
class Validation:
    """A line of metrics.jsonl of kind val: errors at a step, percent."""

    step: int
    epoch: int
    top1_error: float
    top5_error: float
    images: int

    @staticmethod
    def of(line: dict[str, Any]) -> "Validation":
        """From a line that was read back."""
        return Validation(**{key.name: line[key.name] for key in fields(Validation)})


class ValErrors(Protocol):
    """What a validation measures: readable images, and errors in percent."""

    @property
    def images(self) -> int: ...

    @property
    def top1_error(self) -> float: ...

    @property
    def top5_error(self) -> float: ...


@dataclass(frozen=True)
class Left:
    """What a run still has to do."""

    steps: int
    validations: int
    checkpoints: int
    steps_in_validation: float  # images of a validation, in steps


class Pace:
    """How long steps, validations and checkpoints take, hence how long the rest of a run will."""

    def __init__(self) -> None:
        self.steps: deque[float] = deque(maxlen=PACE_LINES)  # seconds a step, one per metrics line
        self.validation: float | None = None  # seconds of the last one; None: not known yet
        self.checkpoint = 0.0  # seconds that training waited for the last one
        self.warm = False
        self.restart(0)

    def restart(self, step: int) -> None:
        """Start the clock after `step` steps."""
        self.first_step, self.started = step, time.perf_counter()

    def stepped(self, step: int) -> None:
        """Ignore the first step of a session, which compiles, tunes and waits for data."""
        if not self.warm:
            self.warm = True
            self.restart(step)

    def saved(self, seconds: float) -> None:
        """Take the wait for a checkpoint out of the time of the steps."""
        self.checkpoint = seconds
        self.started += seconds

    def measure(self, step: int) -> None:
        """Record the seconds a step since the clock was started."""
        if step > self.first_step:
            seconds = time.perf_counter() - self.started
            self.steps.append(seconds / (step - self.first_step))

    def seconds_left(self, left: Left) -> float | None:
        """An estimate; None until a step has been measured.

        A single stall does not move the median. Until a validation has been timed, its images are
        assumed to take as long as those of training.
        """
        if not self.steps:
            return None
        step = median(self.steps)
        validation = self.validation
        if validation is None:
            validation = left.steps_in_validation * step
        waits = left.checkpoints * self.checkpoint
        return left.steps * step + left.validations * validation + waits


@dataclass(frozen=True)
class Plan:
    """Where the steps, epochs and validations of a run lie."""

    config: TrainConfig
    train_images: int
    val_images: int  # of one validation

    @property
    def total(self) -> int:
        """The number of steps of the run."""
        steps = self.last_step_of(self.config.epochs - 1)
        return min(steps, self.config.max_steps or steps)

    def last_step_of(self, epoch: int) -> int:
        """The number of steps after which every image of epochs 0 .. epoch has been seen."""
        return math.ceil((epoch + 1) * self.train_images / self.config.batch_size)

    def has_updates(self, epoch: int) -> bool:
        """Whether any step of the epoch changes the weights."""
        steps = range(self.last_step_of(epoch - 1) + 1, self.last_step_of(epoch) + 1)
        return any(self.config.skipped_span(step) is None for step in steps)

    def left(self, progress: Progress) -> Left:
        """What the run still has to do."""
        config, done, total = self.config, progress.step, self.total
        spans = [(max(first, done + 1), min(last, total)) for first, last in config.skip_steps]
        skipped = sum(max(0, last - first + 1) for first, last in spans)
        # One that max_steps cuts counts; an epoch ends with the batch that holds its last image.
        num_epochs = (total - 1) * config.batch_size // self.train_images + 1
        epochs_left = max(0, num_epochs - progress.epoch)

        def times_left(every: int | None) -> int:
            return total // every - done // every if every else 0

        return Left(
            steps=total - done - skipped,
            validations=epochs_left + times_left(config.val_every),
            checkpoints=2 * epochs_left + times_left(config.checkpoint.every_steps),
            steps_in_validation=self.val_images / config.batch_size,
        )
