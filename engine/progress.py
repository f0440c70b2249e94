"""How far a run is, and what its last steps measured."""

import math
import time
from collections import deque
from dataclasses import dataclass, field, fields
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from configs.schema import TrainConfig

if TYPE_CHECKING:
    from engine.distributed import World
    from engine.step import StepResult

PACE_LINES = 10  # metrics lines whose pace counts


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
        """As it was read back."""
        return Validation(**{each.name: line[each.name] for each in fields(Validation)})


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


class Pace:
    """How long steps, validations and checkpoints take, so how long the rest of a run does."""

    def __init__(self) -> None:
        self.steps: deque[float] = deque(maxlen=PACE_LINES)  # seconds of a step, by metrics lines
        self.validation: float | None = None  # seconds of the last one; None: not known yet
        self.checkpoint = 0.0  # seconds that the last one kept training waiting
        self.warm = False
        self.restart(0)

    def restart(self, step: int) -> None:
        """Start the clock after `step` steps."""
        self.first_step, self.started = step, time.perf_counter()

    def stepped(self, step: int) -> None:
        """The first step of a session does not count: it compiles, tunes and waits for data."""
        if not self.warm:
            self.warm = True
            self.restart(step)

    def saved(self, seconds: float) -> None:
        """A checkpoint has kept training waiting, which the steps did not."""
        self.checkpoint = seconds
        self.started += seconds

    def measure(self, step: int) -> None:
        """Keep the seconds of a step since the clock was started."""
        if step > self.first_step:
            seconds = time.perf_counter() - self.started
            self.steps.append(seconds / (step - self.first_step))

    def seconds_left(self, left: "Left") -> float | None:
        """An estimate; None while no step was measured.

        The median is not moved by a single stall. Until a validation was timed, its images are
        taken to be as fast as those of training.
        """
        if not self.steps:
            return None
        step = median(self.steps)
        validation = self.validation
        if validation is None:
            validation = left.steps_in_validation * step
        return (
            left.steps * step + left.validations * validation + left.checkpoints * self.checkpoint
        )


@dataclass(frozen=True)
class Left:
    """What a run has still to do."""

    steps: int
    validations: int
    checkpoints: int
    steps_in_validation: float  # steps with as many images as a validation


def left_to_do(
    config: TrainConfig, progress: Progress, total: int, *, train_images: int, val_images: int
) -> Left:
    """What a run of `total` steps has still to do."""
    done = progress.step
    spans = [(max(first, done + 1), min(last, total)) for first, last in config.skip_steps]
    skipped = sum(max(0, last - first + 1) for first, last in spans)
    # Of all epochs, also one that max_steps cuts; an epoch ends with the batch of its last image.
    epochs = (total - 1) * config.batch_size // train_images + 1
    ends = max(0, epochs - len(progress.val_errors))

    def times(every: int | None) -> int:
        return total // every - done // every if every else 0

    return Left(
        steps=total - done - skipped,
        validations=ends + times(config.val_every),
        checkpoints=2 * ends + times(config.checkpoint.every_steps),
        steps_in_validation=val_images / config.batch_size,
    )


class StepStatistics:
    """Losses and gradient norms, on the device until they are needed, and the time of steps."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.unread: list[tuple[int, StepResult]] = []
        self.pace = Pace()
        self.restart(0)

    def restart(self, step: int) -> None:
        """Start the clocks after `step` steps; losses stay."""
        self.started, self.seconds_waited, self.first_step = time.perf_counter(), 0.0, step
        self.pace.restart(step)

    def add(self, step: int, result: "StepResult") -> None:
        """Keep what a step has returned."""
        self.unread.append((step, result))
        self.pace.stepped(step)

    def leave_out_a_step(self) -> None:
        """The images of a skipped step do not count in the rate."""
        self.first_step += 1
        self.pace.first_step += 1

    def rates(self, step: int, batch_size: int) -> dict[str, float]:
        """Images per second, and the fraction of time spent waiting for data, since the restart."""
        seconds = time.perf_counter() - self.started
        images = (step - self.first_step) * batch_size
        return {"images_per_second": images / seconds, "data_wait": self.seconds_waited / seconds}

    def read(self) -> list[StepRecord]:
        """The steps not read before; all processes read together."""
        if not self.unread:
            return []
        import torch  # not above: reports read a Validation without torch, which loads for seconds

        steps = [step for step, _ in self.unread]
        results = torch.stack([torch.stack(result) for _, result in self.unread])
        self.unread = []
        values = self.world.sum(results.double()) / self.world.size  # norms are equal everywhere
        return [StepRecord(step, *row) for step, row in zip(steps, values.tolist(), strict=True)]
