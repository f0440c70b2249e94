"""What a run reports: metrics.jsonl, TensorBoard, and what people read on the terminal."""

import json
import math
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from common.errors import has_lost_reader, refusing
from common.files import read_json_lines, write_atomically
from common.machine import commit
from engine.parallel import Parallel, gradients
from engine.progress import PACE_LINES, TrainMetrics, Validation
from models.describe import CARDS, basis, describe, hours_by_arithmetic
from models.learned import CONV1, filter_grid, slopes_by_layer, slopes_of

if TYPE_CHECKING:
    from engine.trainer import Trainer

# tqdm's own format without its estimate of the time left, which ignores validations.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"


class Log:
    """Writes for the main process; on the others every call does nothing.

    When opened at a step, it drops the lines written after that step, and validations after
    `validated`: a resumed run leaves the same lines as an undisturbed one.
    """

    def __init__(
        self, folder: Path, *, step: int, validated: int, total: int, active: bool
    ) -> None:
        self.active, self.total = active, total
        self.validations: list[Validation] = []  # of all sessions
        self.rates: list[float] = []  # images per second, from the lines of earlier sessions
        if not active:
            return
        self.path = folder / "metrics.jsonl"
        lines = read_json_lines(self.path) if step else []
        last_steps = {"val": validated, "slopes": validated}
        kept = [line for line in lines if line["step"] <= last_steps.get(line["kind"], step)]
        self.validations = [Validation.of(line) for line in kept if line["kind"] == "val"]
        self.rates = [line["images_per_second"] for line in kept if line["kind"] == "train"]
        self.told = {line["what"] for line in kept if line["kind"] == "event"}
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda file: file.write(text.encode()))
        self.file = open(self.path, "a")  # noqa: SIM115  (open as long as the run)
        # TensorBoard hides its earlier points from purge_step on, so that curves do not run back.
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            bar_format=_BAR,
            disable=not sys.stderr.isatty(),
        )
        commits = [line["commit"] for line in kept if line["kind"] == "commit"]
        version = commit()
        if version and step < total and commits[-1:] != [version]:
            self.write("commit", step, commit=version)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Write a line of metrics.jsonl; numbers go to TensorBoard too."""
        if not self.active:
            return
        line = {"kind": kind, "step": step, **values}
        with refusing(OSError, what=f"could not write {self.path}"):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        for key, value in values.items():
            if isinstance(value, int | float) and key != "epoch":
                self.board.add_scalar(f"{kind}/{key}", value, step)

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one.

        If nobody reads it any more, as after `| head`, the run is told to stop.
        """
        if not self.active:
            return
        try:
            self.bar.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            if not has_lost_reader():
                raise
            signal.raise_signal(signal.SIGTERM)

    def event(self, step: int, epoch: int, what: str) -> None:
        """Write and print something worth knowing, such as an unreadable image; only once."""
        if self.active and what not in self.told:
            self.told.add(what)
            self.write("event", step, epoch=epoch, what=what)
            self.say(what)

    def validation(self, errors: Validation) -> None:
        """Write and print the errors of a validation."""
        self.validations.append(errors)
        self.write("val", **asdict(errors))
        self.say(
            f"epoch {errors.epoch}, step {errors.step}: top-1 error {errors.top1_error:.2f} %, "
            f"top-5 error {errors.top5_error:.2f} % on {errors.images} validation images"
        )

    def advance(self) -> None:
        """Advance the progress bar by a step."""
        if self.active:
            self.bar.update()

    def show(self, step: int, metrics: TrainMetrics, seconds_left: float | None) -> None:
        """Show how training goes: beside the progress bar or, without a terminal, as a line."""
        if not self.active:
            return
        shown = {
            "epoch": f"{metrics.epoch}",
            "loss": f"{metrics.loss:.4f}",
            "lr": f"{metrics.lr:g}",
            "images/s": f"{metrics.images_per_second:.1f}",
            "waiting for data": f"{100 * metrics.data_wait:.0f} %",
        }
        if seconds_left is not None:
            shown["ETA"] = duration(seconds_left)
        if self.bar.disable:
            pairs = "  ".join(f"{name} {value}" for name, value in shown.items())
            self.say(f"step {step}/{self.total}  {pairs}")
        else:
            self.bar.set_postfix(shown)

    def layers(self, step: int, network: nn.Module, parallel: Parallel) -> None:
        """Gradient norms to metrics.jsonl and TensorBoard, mean slopes to TensorBoard, by layer.

        All processes call it: the parts of a layer may lie on several.
        """
        own = gradients(network)
        # There are none yet if a resumed run begins by skipping steps.
        norms = dict(zip(own, parallel.norms(own).tolist() if own else [], strict=True))
        slopes = _whole_slopes(network, parallel)
        if not self.active:
            return
        for name, values in slopes.items():
            layer = name.removesuffix(".slopes")
            self.board.add_scalar(f"slope/{layer}", values.mean().item(), step)
        for name, norm in norms.items():
            self.board.add_scalar(f"gradient_norm/{name}", norm, step)
        by_layer = {
            name.split(".")[-2]: float(f"{norm:.4g}")
            for name, norm in norms.items()
            if name.endswith(".weight") and math.isfinite(norm)  # fp16 may overflow
        }
        if by_layer:
            self.write("gradients", step, norms=by_layer)

    def learned(self, step: int, network: nn.Module, parallel: Parallel) -> None:
        """The distribution of each layer's slopes, and a picture of conv1's filters.

        All processes call it, as `layers`.
        """
        by_layer = slopes_by_layer(_whole_slopes(network, parallel))
        if not self.active:
            return
        # A weight that is not finite ends the run, with a sentence, at the next save.
        slopes = {layer: values for layer, values in by_layer.items() if values.isfinite().all()}
        for layer, values in slopes.items():
            self.board.add_histogram(f"slopes/{layer}", values.float().cpu(), step)
        if slopes:
            layers = {layer: asdict(slopes_of(values)) for layer, values in slopes.items()}
            self.write("slopes", step, layers=layers)
        grid = filter_grid(network.get_parameter(CONV1))
        # Several pixels a weight, or browsers blur it.
        enlarged = grid.repeat(6, 0).repeat(6, 1)
        self.board.add_image("conv1_filters", enlarged, step, dataformats="HWC")

    def picture(self, step: int, name: str, inputs: Tensor) -> None:
        """Network inputs (pixel values less the mean) as a grid of images, to TensorBoard."""
        if self.active:
            images = (inputs.float().cpu() + 128) / 255
            self.board.add_images(name, images.clamp(0, 1), step)

    def sync(self) -> None:
        """Flush everything to the disk: a checkpoint must not be ahead of it."""
        if self.active:
            with refusing(OSError, what=f"could not write {self.path}"):
                os.fsync(self.file.fileno())
            self.board.flush()

    def close(self) -> None:
        """Flush and close all files."""
        if self.active:
            self.sync()
            self.file.close()
            self.board.close()
            self.bar.close()


def _whole_slopes(network: nn.Module, parallel: Parallel) -> dict[str, Tensor]:
    named = network.named_parameters()
    return dict(parallel.whole({n: p.detach() for n, p in named if n.endswith(".slopes")}))


def headline(run: "Trainer") -> str:
    """What is trained, on what, from where to where and, if that is known, for how long."""
    step, config, train = run.progress.step, run.config, run.dataset.train
    if step >= run.total:
        asked = f", and {run.total:,} are asked for" if step > run.total else ""
        return f"{run.folder} has done {step:,} steps{asked}: nothing is left to train"
    steps = f"{run.total:,}"
    course = f"resuming at step {step:,} of {steps}" if step else f"training for {steps} steps"
    epochs = run.total * config.batch_size / len(train)
    parameters = sum(p.numel() for p in run.network.parameters())
    each = f" in each process, {config.parallel}" if run.world.size > 1 else ""
    every = config.checkpoint.every_steps
    between = f"every {every:,} steps and " if every else ""
    lines = {
        "network": f"{config.model.name}, {config.act.name}, {config.init.name}: "
        f"{parameters:,} parameters{each}",
        "images": f"{len(train):,} of {run.dataset.num_classes:,} classes, "
        f"{run.plan.val_images:,} to validate on",
        "devices": run.world.name,
        "arithmetic": f"{run.step.precision}",
        "checkpoints": f"{between}after each epoch, in {run.folder / 'checkpoints'}",
        "time": _time_estimate(run),
    }
    block = "".join(f"\n  {key:13}{text}" for key, text in lines.items() if text)
    return f"{run.folder}: {course}, {config.batch_size} images a step, {epochs:.3g} epochs{block}"


def _time_estimate(run: "Trainer") -> str:
    """From the run's own pace, or from arithmetic for a GPU of known speed; otherwise ""."""
    left, config = run.plan.left(run.progress), run.config
    images = (left.steps + left.validations * left.steps_in_validation) * config.batch_size
    if rates := run.log.rates[-PACE_LINES:]:
        return f"about {duration(images / median(rates))} left at the pace so far"
    card = next((card for card in CARDS if card in run.world.name), None)
    if card is None or config.precision not in ("bf16", "fp16"):
        return ""
    crop, classes = config.data.crop, run.dataset.num_classes
    network = describe(config.model, config.act, config.init, num_classes=classes, crop=crop)
    # The backward pass costs twice as much as the forward pass.
    hours = hours_by_arithmetic(3 * network.multiply_adds * images, card) / run.world.size
    return f"about {duration(3600 * hours)} {basis(card)}"


def outcome(run: "Trainer") -> str:
    """The errors and checkpoints of a finished run, for the main process."""
    text = f"{run.folder}: {run.progress.step:,} steps are done"
    if not run.log.validations:  # somebody has removed metrics.jsonl
        return text
    last = run.log.validations[-1]
    best = min(run.log.validations, key=lambda line: line.top1_error)
    folder = run.folder / "checkpoints"
    return (
        f"{text}: top-1 error {last.top1_error:.2f} %, top-5 error {last.top5_error:.2f} % "
        f"on {last.images:,} validation images\n"
        f"  last weights {folder / 'last.pt'}\n"
        f"  best weights {folder / 'best.pt'}, top-1 error {best.top1_error:.2f} % "
        f"at step {best.step:,}"
    )


def duration(seconds: float) -> str:
    """For a person: 45 s, 12 min, 3 h 20 min, 6 d 4 h."""
    minutes = round(seconds / 60)
    hours = round(seconds / 3600)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"
