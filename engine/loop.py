"""The training loop: epochs of steps, a validation after each, and checkpoints between."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.errors import UserError, refusing
from configs.schema import TrainConfig
from configs.store import to_dict
from data.batch import Batch
from data.dataset import Dataset
from data.streams import OnEvent
from engine.checkpoint import keep_epoch, keep_previous, load_latest, save_checkpoint
from engine.distributed import World
from engine.log import Log
from engine.meter import Meter
from engine.optim import set_learning_rate
from engine.progress import Progress, ValErrors
from engine.run_folder import refuse_changes
from engine.schedule import learning_rate
from engine.step import TrainingStep
from engine.stopping import Stopped, StopRequest


@dataclass
class Trainer:
    """One run."""

    config: TrainConfig
    dataset: Dataset
    world: World
    folder: Path
    network: nn.Module  # without wrappers
    step: TrainingStep
    batches: Callable[[int, int, OnEvent], Generator[Batch]]  # of steps [start, stop), our share
    validate: Callable[[OnEvent], ValErrors]

    def __post_init__(self) -> None:
        self.settings = to_dict(self.config)  # as plain values, kept in every checkpoint
        self.images = [self.dataset.train.fingerprint(), self.dataset.val.fingerprint()]
        self.progress = Progress()
        self.meter = Meter(self.world)
        self.events: list[str] = []  # noted by this process, not yet written
        steps = self.last_step_of(self.config.epochs - 1)
        self.total = min(steps, self.config.max_steps or steps)

    def last_step_of(self, epoch: int) -> int:
        """Steps done once every image of epochs 0 .. epoch was seen."""
        return math.ceil((epoch + 1) * len(self.dataset.train) / self.config.batch_size)

    def note(self, what: str) -> None:
        """Remember an event, such as an image that could not be read, for the next metrics line."""
        self.events.append(what)

    def fit(self) -> None:
        """Train to the end, from the last checkpoint if there is one.

        Raises Stopped, with everything saved, where a signal asks for it.
        """
        self.resume()
        steps = self.world.sum(torch.tensor(self.progress.step))
        if steps != self.progress.step * self.world.size:
            raise UserError(f"not all processes see {self.folder}: it must be on a shared disk")
        place = (self.progress.step, self.progress.validated, self.total)
        self.log = Log(self.folder, *place, active=self.world.is_main)
        try:
            self.write_events(len(self.progress.val_errors))
            if self.progress.step:
                self.log.say(f"resuming {self.folder} at step {self.progress.step} of {self.total}")
            stream = closing(self.batches(self.progress.step, self.total, self.note))
            with stream as batches, StopRequest(self.world) as self.stop:
                while self.progress.validated < self.total:
                    self.train_one_epoch(batches)
        finally:
            self.log.close()

    def train_one_epoch(self, stream: Iterator[Batch]) -> None:
        """From where the run is to the end of its epoch; validate; save."""
        epoch = len(self.progress.val_errors)
        rate = learning_rate(self.config.schedule, self.progress.val_errors)
        set_learning_rate(self.step.optimizer, rate)
        end = self.last_step_of(epoch)
        every, val_every = self.config.checkpoint.every_steps, self.config.val_every
        self.meter.restart(self.progress.step)
        while self.progress.step < min(end, self.total):
            self.train_one_step(stream, epoch, rate)
            step, ended = self.progress.step, self.progress.step >= min(end, self.total)
            if not ended and val_every and step % val_every == 0:
                self.evaluate(epoch)
            if not ended and every and step % every == 0:
                self.save("last.pt")
            if not ended and self.stop.due(step):
                self.stop_if_asked()
        self.save("last.pt")  # validation may take long, and be cut
        self.stop_if_asked()
        error = self.evaluate(epoch)
        if self.progress.step < end:  # max_steps cut the epoch: it does not count in the schedule
            self.save("last.pt")
            return
        self.progress.val_errors.append(error)
        self.save("last.pt")
        if self.world.is_main:
            keep_epoch(self.folder / "checkpoints", epoch, self.config.checkpoint.keep)

    def stop_if_asked(self) -> None:
        """Raises Stopped, once all is saved, if any process has got a signal."""
        if self.stop.agreed():
            self.save("last.pt")
            step = self.progress.step
            raise Stopped(f"stopped by a signal, saved at step {step} of {self.total}")

    def train_one_step(self, stream: Iterator[Batch], epoch: int, rate: float) -> None:
        """Fetch a batch and step; every `log_every` steps, and at the end, write a metrics line."""
        before = time.perf_counter()
        batch = next(stream)
        self.meter.waited += time.perf_counter() - before
        if self.progress.step == 0:
            self.log.picture(0, "augmented_batch", self.step.preview(batch))
        self.meter.unread.append(self.step(batch))
        self.progress.step += 1
        self.log.advance()
        if self.progress.step % self.config.log_every == 0 or self.progress.step == self.total:
            self.write_metrics(epoch, rate)

    def write_metrics(self, epoch: int, rate: float) -> None:
        """A line of what happened since the last one."""
        self.read_losses()
        self.write_events(epoch)
        step = self.progress.step
        values = {
            "epoch": epoch,
            "loss": math.fsum(self.progress.window) / len(self.progress.window),
            "lr": rate,
            **self.meter.rates(step, self.config.batch_size),
        }
        self.log.write("train", step, **values)
        self.log.layers(step, self.network)
        shown = {
            "epoch": f"{epoch}",
            "loss": f"{values['loss']:.4f}",
            "lr": f"{rate:g}",
            "images/s": f"{values['images_per_second']:.1f}",
            "waiting for data": f"{100 * values['data_wait']:.0f} %",
        }
        self.log.report(step, self.total, shown)
        self.progress.window = []
        self.meter.restart(step)

    def write_events(self, epoch: int) -> None:
        """What all processes noted."""
        for what in self.world.gather(self.events):
            self.log.event(self.progress.step, epoch, what)
        self.events.clear()

    def read_losses(self) -> None:
        """Bring the losses up to now; raises UserError, with what is saved, if one is no number."""
        with refusing(UserError, also=self.kept()):
            self.progress.window += self.meter.read_losses(self.progress.step)

    def kept(self) -> str:
        """What there is to go back to when a run diverges."""
        last = self.folder / "checkpoints" / "last.pt"
        kept = f"the last good checkpoint is {last}" if last.exists() else "nothing was saved yet"
        return f"{kept}; try smaller schedule.rates, or precision=fp32, as a new run with name=..."

    def evaluate(self, epoch: int) -> float:
        """Validate, keep the weights if they are the best so far; returns the top-1 error (%)."""
        self.read_losses()
        errors = self.validate(self.note)
        self.write_events(epoch)
        step = self.progress.step
        values = {key: getattr(errors, key) for key in ("top1_error", "top5_error", "images")}
        self.log.write("val", step, epoch=epoch, **values)
        self.log.say(
            f"epoch {epoch}, step {step}: top-1 error {errors.top1_error:.2f} %, top-5 error "
            f"{errors.top5_error:.2f} % on {errors.images} validation images"
        )
        if errors.top1_error < self.progress.best:
            self.progress.best = errors.top1_error
            self.save("best.pt")
        self.progress.validated = step
        self.meter.restart(step)
        return errors.top1_error

    def save(self, name: str) -> None:
        """Write a checkpoint of what has been done so far; best.pt has no optimiser state."""
        self.read_losses()
        norms = torch.stack(torch._foreach_norm([p.detach() for p in self.network.parameters()]))
        if not bool(norms.isfinite().all()):
            step = self.progress.step
            raise UserError(f"a weight is not finite after step {step}; {self.kept()}")
        if not self.world.is_main:
            return
        self.log.sync()
        state: dict[str, Any] = {
            "config": self.settings,
            "classes": self.dataset.train.classes,
            "images": self.images,
            "mean": self.step.mean.cpu(),
            "progress": asdict(self.progress),
            "network": self.network.state_dict(),
        }
        if name != "best.pt":
            state["optimizer"] = self.step.optimizer.state_dict()
            state["scaler"] = self.step.scaler.state_dict()
        if name == "last.pt":
            keep_previous(self.folder / "checkpoints")
        save_checkpoint(self.folder / "checkpoints" / name, state)

    def resume(self) -> None:
        """Go back to the last checkpoint, if there is one; UserError if it is of another run."""
        path, state = load_latest(self.folder / "checkpoints", self.note)
        if state is None:
            return
        refuse_changes(path, state["config"], self.settings)
        same_mean = torch.equal(state["mean"], self.step.mean.cpu())
        if state["images"] != self.images or not same_mean:
            what = "images" if same_mean else "mean"
            raise UserError(
                f"{path} was trained with other {what} than {self.config.data.root} and "
                f"data.mean={self.config.data.mean} give now: give name=... for a new run"
            )
        self.network.load_state_dict(state["network"])
        self.step.optimizer.load_state_dict(state["optimizer"])
        self.step.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
