"""The training loop: epochs of steps, a validation after each, and checkpoints between."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import NoReturn

import torch

from common.errors import Stopped, UserError
from configs.schema import TrainConfig
from configs.store import to_dict
from data.loading import Batch, OnEvent, skipping
from data.sources.index import Dataset
from engine.checkpoint import (
    State,
    load_latest,
    open_writer,
    refuse_other_data,
    save_checkpoint,
    use_previous,
)
from engine.distributed import World
from engine.divergence import RECENT, learns_nothing, refuse_other_skips, rises, way_on
from engine.log import Log
from engine.optim import set_learning_rate
from engine.parallel import Parallel, load_whole_state, whole_state
from engine.progress import (
    Left,
    Progress,
    StepStatistics,
    TrainMetrics,
    ValErrors,
    Validation,
    left_to_do,
)
from engine.run_folder import refuse_changes
from engine.schedule import learning_rate
from engine.step import TrainingStep
from engine.stopping import StopRequest
from engine.summary import headline, shown_beside
from models.network import Network


@dataclass
class Trainer:
    """One run."""

    config: TrainConfig
    dataset: Dataset
    world: World
    folder: Path
    parallel: Parallel
    network: Network  # this process's part, without wrappers
    step: TrainingStep
    batches: Callable[[int, int, OnEvent], Generator[Batch]]  # of steps [start, stop), our share
    validate: Callable[[OnEvent], ValErrors]

    def __post_init__(self) -> None:
        self.settings = to_dict(self.config)  # as plain values, kept in every checkpoint
        self.images = [self.dataset.train.fingerprint(), self.dataset.val.fingerprint()]
        self.progress = Progress()
        self.statistics = StepStatistics(self.world)
        self.events = self.dataset.remarks()  # noted by this process, not yet written
        self.writer = open_writer(self.config.checkpoint.asynchronous)
        steps = self.last_step_of(self.config.epochs - 1)
        self.total = min(steps, self.config.max_steps or steps)
        val_images = len(self.dataset.val)
        self.val_images = min(self.config.val_subset or val_images, val_images)

    def last_step_of(self, epoch: int) -> int:
        """Steps done once every image of epochs 0 .. epoch was seen."""
        return math.ceil((epoch + 1) * len(self.dataset.train) / self.config.batch_size)

    def has_updates(self, epoch: int) -> bool:
        """Whether any step of the epoch changes the weights."""
        steps = range(self.last_step_of(epoch - 1) + 1, self.last_step_of(epoch) + 1)
        return any(skipping(step, self.config.skip_steps) is None for step in steps)

    def note(self, event: str) -> None:
        """Keep an event, such as an unreadable image, for the next metrics line."""
        self.events.append(event)

    def fit(self) -> None:
        """Train to the end, from the last checkpoint if there is one.

        Raises Stopped, with everything saved, if a signal asks for it.
        """
        origin = self.resume()
        step = self.progress.step
        if self.world.sum(torch.tensor(step)) != step * self.world.size:
            raise UserError(f"not all processes see {self.folder}: it must be on a shared disk")
        self.log = Log(
            self.folder,
            step=step,
            validated=self.progress.validated,
            total=self.total,
            active=self.world.is_main,
        )
        try:
            self.write_events(len(self.progress.val_errors))
            self.log.sync()
            if self.world.is_main:
                use_previous(origin)
            self.log.say(headline(self))
            stream = closing(self.batches(step, self.total, self.note))
            with stream as batches, StopRequest(self.world) as self.stop, self.writer:
                while self.progress.validated < self.total:
                    self.train_one_epoch(batches)
                self.writer.wait()
                self.world.barrier()  # launchers end the others some time after the first has left
        finally:
            self.log.close()

    def left(self) -> Left:
        """What is still to do."""
        return left_to_do(
            self.config,
            self.progress,
            self.total,
            train_images=len(self.dataset.train),
            val_images=self.val_images,
        )

    def train_one_epoch(self, batches: Iterator[Batch]) -> None:
        """From where the run is to the end of its epoch; validate; save."""
        epoch = len(self.progress.val_errors)
        rate = learning_rate(self.config.schedule, self.progress.val_errors, self.has_updates)
        set_learning_rate(self.step.optimizer, rate)
        epoch_end = self.last_step_of(epoch)
        end = min(epoch_end, self.total)
        self.statistics.restart(self.progress.step)
        while self.progress.step < end:
            if span := skipping(self.progress.step + 1, self.config.skip_steps):
                self.skip_one_step(*span)
            else:
                self.train_one_step(batches)
            if self.progress.step % self.config.log_every == 0 or self.progress.step == self.total:
                self.write_metrics(epoch, rate)
            if self.progress.step < end:
                self.do_what_is_due(epoch)
        self.read_losses()
        if learns_nothing(self.progress.recent, self.dataset.num_classes):
            classes = self.dataset.num_classes
            self.note(f"the loss is still ln {classes}, as by guessing: nothing is learned so far")
        self.save("last.pt")  # validation may take long, and be cut
        self.stop_if_asked()
        error = self.evaluate(epoch)
        ended = self.progress.step >= epoch_end
        if ended:  # an epoch that max_steps has cut does not count in the schedule
            self.progress.val_errors.append(error)
        self.save("last.pt", ends=epoch if ended else None)

    def do_what_is_due(self, epoch: int) -> None:
        """Between two steps of an epoch: validate, save, or stop."""
        step, every = self.progress.step, self.config.checkpoint.every_steps
        if self.config.val_every and step % self.config.val_every == 0:
            self.evaluate(epoch)
        if every and step % every == 0:
            self.save("last.pt")
        if self.stop.due(step):
            self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raises Stopped, once all is saved, if any process has got a signal."""
        if self.stop.agreed():
            self.save("last.pt")
            self.writer.wait()
            self.world.barrier()  # the first process to leave ends the others under torchrun
            step = self.progress.step
            raise Stopped(f"stopped by a signal, saved at step {step} of {self.total}")

    def train_one_step(self, batches: Iterator[Batch]) -> None:
        """Fetch a batch and step."""
        before = time.perf_counter()
        batch = next(batches)
        self.statistics.seconds_waited += time.perf_counter() - before
        self.world.watch.meet(f"step {self.progress.step + 1}")
        if self.progress.step == 0:
            self.log.picture(0, "augmented_batch", self.step.preview(batch))
        self.progress.step += 1
        self.statistics.add(self.progress.step, self.step(batch))
        self.log.advance()

    def skip_one_step(self, first: int, last: int) -> None:
        """Count a step of a span of skip_steps, without its batch and update."""
        self.progress.step += 1
        self.statistics.leave_out_a_step()
        self.log.advance()
        event = f"steps {first} to {last} are passed over without an update (skip_steps)"
        if event not in self.events:
            self.note(event)

    def write_metrics(self, epoch: int, rate: float) -> None:
        """Write the means since the last line."""
        self.writer.check()
        self.read_losses()
        self.write_events(epoch)
        if not self.progress.window:  # all were skipped
            return
        step = self.progress.step
        norms = [norm for norm in self.progress.norms if math.isfinite(norm)]  # fp16 may overflow
        metrics = TrainMetrics(
            epoch=epoch,
            loss=math.fsum(self.progress.window) / len(self.progress.window),
            lr=rate,
            gradient_norm=math.fsum(norms) / len(norms) if norms else None,
            **self.statistics.rates(step, self.config.batch_size),
        )
        self.log.write("train", step, **asdict(metrics))
        self.log.layers(step, self.network, self.parallel)
        pace = self.statistics.pace
        pace.measure(step)
        shown = shown_beside(metrics, pace.seconds_left(self.left()))
        self.log.report(step, self.total, shown)
        self.progress.window, self.progress.norms = [], []
        self.statistics.restart(step)

    def write_events(self, epoch: int) -> None:
        """Write what all processes noted."""
        for event in self.world.gather(self.events):
            self.log.event(self.progress.step, epoch, event)
        self.events.clear()

    def read_losses(self) -> None:
        """Read the losses of all steps so far; note one that is far above those before it.

        Raises UserError, with the way on, if one is not a number.
        """
        progress = self.progress
        for step, loss, norm in self.statistics.read():
            if not math.isfinite(loss):
                self.refuse_to_go_on(f"the loss became {loss}", step)
            if not rises(loss, progress.recent):
                progress.rose_at = None
            elif progress.rose_at is None:
                progress.rose_at = step
                level = f"{median(progress.recent):.3g} in the steps before"
                self.note(f"the loss rose to {loss:.3g} at step {step}, from a median of {level}")
            progress.window.append(loss)
            progress.norms.append(norm)
            progress.recent = [*progress.recent, loss][-RECENT:]

    def refuse_to_go_on(self, failure: str, step: int) -> NoReturn:
        """Raises UserError with what to type next; all processes come here together."""
        with suppress(UserError):  # raised again on leaving
            self.writer.wait()
        self.write_events(len(self.progress.val_errors))
        self.world.barrier()
        folder, rose_at = self.folder / "checkpoints", self.progress.rose_at
        advice = way_on(folder, step, rose_at=rose_at, spans=self.config.skip_steps)
        raise UserError(f"{failure} at step {step}; {advice}")

    def evaluate(self, epoch: int) -> float:
        """Validate, keep the weights if they are the best so far; returns the top-1 error (%)."""
        self.read_losses()
        before = time.perf_counter()
        errors = self.validate(self.note)
        self.write_events(epoch)
        step = self.progress.step
        self.log.learned(step, self.network, self.parallel)
        self.log.validation(
            Validation(step, epoch, errors.top1_error, errors.top5_error, errors.images)
        )
        self.log.say(
            f"epoch {epoch}, step {step}: top-1 error {errors.top1_error:.2f} %, top-5 error "
            f"{errors.top5_error:.2f} % on {errors.images} validation images"
        )
        if errors.top1_error < self.progress.best:
            self.progress.best = errors.top1_error
            self.save("best.pt")
        self.progress.validated = step
        self.statistics.pace.validation = time.perf_counter() - before
        self.statistics.restart(step)
        return errors.top1_error

    def save(self, name: str, ends: int | None = None) -> None:
        """Have a checkpoint of now written; `ends`: the epoch that it ends."""
        self.read_losses()
        # A checkpoint must not know of an event that metrics.jsonl does not have.
        self.write_events(len(self.progress.val_errors))
        before = time.perf_counter()
        self.world.watch.alive()
        if not bool(self.parallel.norms(self.network.state_dict()).isfinite().all()):
            self.refuse_to_go_on("a weight is not finite", self.progress.step)
        state = self.state(name)
        if self.world.is_main:
            self.writer.save(state, partial(self.write, name, ends))
        self.statistics.pace.saved(time.perf_counter() - before)

    def write(self, name: str, ends: int | None, state: State) -> None:
        """Write a checkpoint, beside training; raises UserError if it cannot be written."""
        self.log.sync()
        keep = self.config.checkpoint.keep
        save_checkpoint(self.folder / "checkpoints" / name, state, epoch=ends, keep=keep)

    def state(self, name: str) -> State:
        """What a checkpoint holds, whole on any number of processes; best.pt: the network alone."""
        weights, optimizer = whole_state(self.parallel, self.network, self.step.optimizer)
        state: State = {
            "config": self.settings,
            "classes": self.dataset.train.classes,
            "images": self.images,
            "mean": self.step.mean.cpu(),
            "progress": asdict(self.progress),
            "network": weights,
        }
        if name != "best.pt":
            state["optimizer"] = optimizer
            state["scaler"] = self.step.scaler.state_dict()
        return state

    def resume(self) -> Path:
        """Load the last checkpoint, if any, and return its path; UserError if another run's."""
        path, state = load_latest(self.folder / "checkpoints", self.note)
        if state is None:
            return path
        refuse_changes(path, state["config"], self.settings)
        refuse_other_data(
            path, state, images=self.images, mean=self.step.mean.cpu(), data=self.config.data
        )
        load_whole_state(
            self.parallel,
            self.network,
            self.step.optimizer,
            weights=state["network"],
            state=state["optimizer"],
        )
        self.step.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        before = state["config"].get("skip_steps", [])
        refuse_other_skips(self.progress.step, before, self.config.skip_steps)
        return path
