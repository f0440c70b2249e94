"""What people are told about a run: what it will do, how it goes, how long, and what came out."""

from statistics import median
from typing import TYPE_CHECKING

from engine.progress import PACE_LINES, TrainMetrics
from models.describe import CARDS, basis, describe, hours_by_arithmetic

if TYPE_CHECKING:
    from engine.trainer import Trainer


def headline(run: "Trainer") -> str:
    """What is trained, on what, from where to where, and how long it takes if that is known."""
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
        f"{run.val_images:,} to validate on",
        "devices": run.world.name,
        "arithmetic": f"{run.step.precision}",
        "checkpoints": f"{between}after each epoch, in {run.folder / 'checkpoints'}",
        "time": time_estimate(run),
    }
    block = "".join(f"\n  {key:13}{text}" for key, text in lines.items() if text)
    return f"{run.folder}: {course}, {config.batch_size} images a step, {epochs:.3g} epochs{block}"


def time_estimate(run: "Trainer") -> str:
    """From the run's own pace, or by arithmetic for a GPU of a known matrix rate; else ""."""
    left, config = run.left(), run.config
    images = (left.steps + left.validations * left.steps_in_validation) * config.batch_size
    if rates := run.log.rates[-PACE_LINES:]:
        return f"about {duration(images / median(rates))} left at the pace so far"
    card = next((card for card in CARDS if card in run.world.name), None)
    if card is None or config.precision not in ("bf16", "fp16"):
        return ""
    crop, classes = config.data.crop, run.dataset.num_classes
    network = describe(config.model, config.act, config.init, num_classes=classes, crop=crop)
    # The backward pass costs twice what the forward pass does.
    hours = hours_by_arithmetic(3 * network.multiply_adds * images, card) / run.world.size
    return f"about {duration(3600 * hours)} {basis(card)}"


def shown_beside(metrics: TrainMetrics, seconds_left: float | None) -> dict[str, str]:
    """How training goes, for a plain line or beside the progress bar."""
    shown = {
        "epoch": f"{metrics.epoch}",
        "loss": f"{metrics.loss:.4f}",
        "lr": f"{metrics.lr:g}",
        "images/s": f"{metrics.images_per_second:.1f}",
        "waiting for data": f"{100 * metrics.data_wait:.0f} %",
    }
    return shown if seconds_left is None else {**shown, "ETA": duration(seconds_left)}


def outcome(run: "Trainer") -> str:
    """What came out, for the main process of a run that has come to its end."""
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
