"""What a run reports: metrics.jsonl, TensorBoard, and a line or a progress bar."""

import json
import math
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from common.errors import has_lost_reader, refusing
from common.files import read_json_lines, write_atomically
from common.machine import commit
from engine.parallel import Parallel, gradients
from engine.progress import Validation
from models.learned import CONV1, filter_grid, slopes_by_layer, slopes_of

# tqdm's own, without its estimate of the time left: it knows nothing of validations.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
_AT_VALIDATIONS = ("val", "slopes")  # kinds of lines


class Log:
    """Writes for the main process; on the others every call does nothing.

    Opened at a step, it drops the lines written after that step, and validations after `validated`:
    a resumed run leaves the same lines as an undisturbed one.
    """

    def __init__(
        self, folder: Path, *, step: int, validated: int, total: int, active: bool
    ) -> None:
        self.active = active
        self.validations: list[Validation] = []  # of all sessions
        self.rates: list[float] = []  # images per second, of the lines of earlier sessions
        if not active:
            return
        self.path = folder / "metrics.jsonl"
        last = dict.fromkeys(_AT_VALIDATIONS, validated)
        lines = read_json_lines(self.path) if step else []
        kept = [line for line in lines if line["step"] <= last.get(line["kind"], step)]
        self.validations = [Validation.of(line) for line in kept if line["kind"] == "val"]
        self.rates = [line["images_per_second"] for line in kept if line["kind"] == "train"]
        self.told = {line["what"] for line in kept if line["kind"] == "event"}
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda file: file.write(text.encode()))
        self.file = open(self.path, "a")  # noqa: SIM115  (open as long as the run)
        known = [line["commit"] for line in kept if line["kind"] == "commit"]
        # TensorBoard hides what it has from purge_step on, so that curves do not run back.
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        self.bar = tqdm(
            total=total,
            initial=step,
            unit="step",
            bar_format=_BAR,
            disable=not sys.stderr.isatty(),
        )
        version = commit()
        if version and step < total and known[-1:] != [version]:
            self.write("commit", step, commit=version)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One line of metrics.jsonl; numbers go to TensorBoard too."""
        if not self.active:
            return
        line = {"kind": kind, "step": step, **values}
        with refusing(OSError, what=f"could not write {self.path}"):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        for key, value in values.items():
            if isinstance(value, int | float) and key != "epoch":
                self.board.add_scalar(f"{kind}/{key}", value, step)

    def validation(self, errors: Validation) -> None:
        """The line of a validation; it is kept for the end."""
        self.validations.append(errors)
        self.write("val", **asdict(errors))

    def event(self, step: int, epoch: int, what: str) -> None:
        """Something worth knowing, such as an unreadable image; written once."""
        if self.active and what not in self.told:
            self.told.add(what)
            self.write("event", step, epoch=epoch, what=what)
            self.say(what)

    def say(self, text: str) -> None:
        """Print a line, above the progress bar if there is one.

        Where nobody reads it any more, as after `| head`, the run is told to stop.
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

    def advance(self) -> None:
        """Move the progress bar on by a step."""
        if self.active:
            self.bar.update()

    def report(self, step: int, total: int, shown: dict[str, str]) -> None:
        """Show how training goes: beside the progress bar, or as a line if there is no terminal."""
        if not self.active:
            return
        if self.bar.disable:
            self.say(f"step {step}/{total}  " + "  ".join(f"{k} {v}" for k, v in shown.items()))
        else:
            self.bar.set_postfix(shown)

    def layers(self, step: int, network: nn.Module, parallel: Parallel) -> None:
        """Gradient norms to metrics.jsonl and TensorBoard, mean slopes to TensorBoard, by layer.

        Called by all processes: the parts of a layer may lie on several.
        """
        held = gradients(network)
        # None yet where a resumed run begins by passing over steps.
        norms = dict(zip(held, parallel.norms(held).tolist() if held else [], strict=True))
        for name, values in _whole_slopes(network, parallel).items():
            self.scalar(f"slope/{name.removesuffix('.slopes')}", values.mean().item(), step)
        for name, norm in norms.items():
            self.scalar(f"gradient_norm/{name}", norm, step)
        by_layer = {
            name.split(".")[-2]: float(f"{norm:.4g}")
            for name, norm in norms.items()
            if name.endswith(".weight") and math.isfinite(norm)  # fp16 may overflow
        }
        if by_layer:
            self.write("gradients", step, norms=by_layer)

    def learned(self, step: int, network: nn.Module, parallel: Parallel) -> None:
        """How the slopes of each layer are distributed, and a picture of conv1's filters.

        Called by all processes, as `layers` is.
        """
        by_layer = slopes_by_layer(_whole_slopes(network, parallel))
        if not self.active:
            return
        # A weight that is not finite ends the run with a sentence when it is saved.
        slopes = {layer: values for layer, values in by_layer.items() if values.isfinite().all()}
        for layer, values in slopes.items():
            self.board.add_histogram(f"slopes/{layer}", values.float().cpu(), step)
        if slopes:
            layers = {layer: asdict(slopes_of(values)) for layer, values in slopes.items()}
            self.write("slopes", step, layers=layers)
        grid = filter_grid(network.get_parameter(CONV1))
        # A weight is a square of pixels, or browsers blur it.
        enlarged = grid.repeat(6, 0).repeat(6, 1)
        self.board.add_image("conv1_filters", enlarged, step, dataformats="HWC")

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of a TensorBoard curve."""
        if self.active:
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, inputs: Tensor) -> None:
        """A grid of network inputs (pixel values less the mean), to TensorBoard."""
        if not self.active:
            return
        images = inputs[:32].float().cpu()
        self.board.add_images(name, ((images + 128) / 255).clamp(0, 1), step)

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
