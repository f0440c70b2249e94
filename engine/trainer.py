"""The training loop: epochs of steps, each followed by a validation, and checkpoints."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import NoReturn

import torch

from common.errors import Stopped, UserError
from configs.schema import TrainConfig
from configs.store import to_dict
from data.loading import Batch, OnEvent
from data.sources.index import Dataset
from engine.checkpoint import (
    BackgroundWriter,
    State,
    Writer,
    load_latest,
    refuse_other_data,
    save_checkpoint,
    use_previous,
)
from engine.distributed import World
from engine.divergence import RECENT, learns_nothing, refuse_other_skips, rises, way_on
from engine.log import Log, headline
from engine.optim import learning_rate, set_learning_rate
from engine.parallel import Parallel, load_whole_state, whole_state
from engine.progress import Plan, Progress, TrainMetrics, ValErrors, Validation
from engine.run_folder import refuse_changes
from engine.step import StepStatistics, TrainingStep
from engine.stopping import StopRequest
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
    batches: Callable[[int, int, OnEvent], Generator[Batch]]  # our share of steps [start, stop)
    validate: Callable[[OnEvent], ValErrors]

    def __post_init__(self) -> None:
        self.settings = to_dict(self.config)  # kept in every checkpoint
        self.images = [self.dataset.train.fingerprint(), self.dataset.val.fingerprint()]
        self.progress = Progress()
        self.statistics = StepStatistics(self.world)
        self.events = self.dataset.remarks()  # of this process, not yet written
        self.note = self.events.append
        self.writer = BackgroundWriter() if self.config.checkpoint.asynchronous else Writer()
        val_images = len(self.dataset.val)
        self.plan = Plan(
            self.config,
            train_images=len(self.dataset.train),
            val_images=min(self.config.val_subset or val_images, val_images),
        )
        self.total = self.plan.total

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
            self.write_events()
            self.log.sync()
            if self.world.is_main:
                use_previous(origin)
            self.log.say(headline(self))
            stream = closing(self.batches(step, self.total, self.note))
            with stream as batches, StopRequest(self.world) as self.stop, self.writer:
                while self.progress.validated < self.total:
                    self.train_one_epoch(batches)
                self.writer.wait()
                self.world.barrier()  # once one process has left, launchers may end the others
        finally:
            self.log.close()

    def train_one_epoch(self, batches: Iterator[Batch]) -> None:
        """Train to the end of the epoch under way, validate and save."""
        epoch = self.progress.epoch
        rate = learning_rate(self.config.schedule, self.progress.val_errors, self.plan.has_updates)
        set_learning_rate(self.step.optimizer, rate)
        epoch_end = self.plan.last_step_of(epoch)
        end = min(epoch_end, self.total)
        self.statistics.restart(self.progress.step)
        while self.progress.step < end:
            if span := self.config.skipped_span(self.progress.step + 1):
                self.skip_one_step(*span)
            else:
                self.train_one_step(batches)
            if self.progress.step % self.config.log_every == 0 or self.progress.step == self.total:
                self.write_metrics(rate)
            if self.progress.step < end:
                self.do_what_is_due()
        self.read_losses()
        classes = self.dataset.num_classes
        if learns_nothing(self.progress.recent, classes):
            self.note(f"the loss is still ln {classes}, as by guessing: nothing is learned so far")
        self.save("last.pt")  # validation may take long, and be interrupted
        self.stop_if_asked()
        error = self.evaluate()
        is_complete = self.progress.step >= epoch_end
        if is_complete:  # the schedule ignores an epoch that max_steps has cut
            self.progress.val_errors.append(error)
        self.save("last.pt", ends=epoch if is_complete else None)

    def do_what_is_due(self) -> None:
        """Between two steps of an epoch: validate, save or stop."""
        step, every = self.progress.step, self.config.checkpoint.every_steps
        if self.config.val_every and step % self.config.val_every == 0:
            self.evaluate()
        if every and step % every == 0:
            self.save("last.pt")
        if self.stop.due(step):
            self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Raises Stopped, once everything is saved, if any process has received a signal."""
        if self.stop.agreed():
            self.save("last.pt")
            self.writer.wait()
            self.world.barrier()  # under torchrun, the first process to leave ends the others
            step = self.progress.step
            raise Stopped(f"stopped by a signal, saved at step {step} of {self.total}")

    def train_one_step(self, batches: Iterator[Batch]) -> None:
        """Fetch a batch and update the weights."""
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
        """Count a step of a span of skip_steps, without a batch or an update."""
        self.progress.step += 1
        self.statistics.leave_out_a_step()
        self.log.advance()
        # Noted at each of them, written once.
        self.note(f"steps {first} to {last} are passed over without an update (skip_steps)")

    def write_metrics(self, rate: float) -> None:
        """Write the means since the last line."""
        self.writer.check()
        self.read_losses()
        self.write_events()
        progress = self.progress
        if not progress.window:  # all steps were skipped
            return
        norms = [norm for norm in progress.norms if math.isfinite(norm)]  # fp16 may overflow
        metrics = TrainMetrics(
            epoch=progress.epoch,
            loss=fmean(progress.window),
            lr=rate,
            gradient_norm=fmean(norms) if norms else None,
            **self.statistics.rates(progress.step, self.config.batch_size),
        )
        self.log.write("train", progress.step, **asdict(metrics))
        self.log.layers(progress.step, self.network, self.parallel)
        self.statistics.pace.measure(progress.step)
        seconds_left = self.statistics.pace.seconds_left(self.plan.left(progress))
        self.log.show(progress.step, metrics, seconds_left)
        progress.window, progress.norms = [], []
        self.statistics.restart(progress.step)

    def write_events(self) -> None:
        """Write what all processes noted, such as unreadable images."""
        for event in self.world.gather(self.events):
            self.log.event(self.progress.step, self.progress.epoch, event)
        self.events.clear()

    def read_losses(self) -> None:
        """Read the losses of all steps so far; note one that is far above those before it.

        Raises UserError, with what to type next, if one is not finite.
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
        """Raises UserError with what to type next; all processes call it together."""
        with suppress(UserError):  # raised again on leaving
            self.writer.wait()
        self.write_events()
        self.world.barrier()
        folder, rose_at = self.folder / "checkpoints", self.progress.rose_at
        advice = way_on(folder, step, rose_at=rose_at, spans=self.config.skip_steps)
        raise UserError(f"{failure} at step {step}; {advice}")

    def evaluate(self) -> float:
        """Validate, and save the weights if they are the best; returns the top-1 error (%)."""
        self.read_losses()
        before = time.perf_counter()
        errors = self.validate(self.note)
        self.write_events()
        step = self.progress.step
        self.log.learned(step, self.network, self.parallel)
        self.log.validation(
            Validation(
                step=step,
                epoch=self.progress.epoch,
                top1_error=errors.top1_error,
                top5_error=errors.top5_error,
                images=errors.images,
            )
        )
        if errors.top1_error < self.progress.best:
            self.progress.best = errors.top1_error
            self.save("best.pt")
        self.progress.validated = step
        self.statistics.pace.validation = time.perf_counter() - before
        self.statistics.restart(step)
        return errors.top1_error

    def save(self, name: str, ends: int | None = None) -> None:
        """Hand a checkpoint of this moment to the writer; `ends`: the epoch that it ends."""
        self.read_losses()
        self.write_events()  # metrics.jsonl must have all events that the checkpoint knows of
        before = time.perf_counter()
        self.world.watch.alive()
        if not self.parallel.norms(self.network.state_dict()).isfinite().all():
            self.refuse_to_go_on("a weight is not finite", self.progress.step)
        state = self.state(name)
        if self.world.is_main:
            self.writer.save(state, partial(self.write, name, ends))
        self.statistics.pace.saved(time.perf_counter() - before)

    def write(self, name: str, ends: int | None, state: State) -> None:
        """Write a checkpoint, while training goes on; raises UserError if that fails."""
        self.log.sync()
        keep = self.config.checkpoint.keep
        save_checkpoint(self.folder / "checkpoints" / name, state, epoch=ends, keep=keep)

    def state(self, name: str) -> State:
        """What a checkpoint holds, whole on any number of processes; best.pt: no optimiser."""
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
        """Load the last checkpoint, if any; returns its path.

        Raises UserError if it belongs to another run.
        """
        path, state = load_latest(self.folder / "checkpoints", self.note)
        if state is None:
            return path
        refuse_changes(path, state["config"], self.settings)
        refuse_other_data(
            path, state, images=self.images, mean=self.step.mean.cpu(), data=self.config.data
        )
        load_whole_state(self.parallel, self.network, self.step.optimizer, state)
        self.step.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        old_spans = state["config"].get("skip_steps", [])
        refuse_other_skips(self.progress.step, old_spans, self.config.skip_steps)
        return path
