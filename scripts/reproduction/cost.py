"""What jobs cost: images to process, and GPU hours, by measured speeds or by arithmetic."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from analysis.report.runs import Run
from common.errors import UserError
from models.describe import basis, hours_by_arithmetic
from scripts.reproduction.launch import Launcher
from scripts.reproduction.plan import Job


@dataclass(frozen=True)
class Throughput:
    """Speed of a model on one device, in training or in dense testing at one scale."""

    images_per_second: float
    source: str


Rates = dict[str, Throughput]  # by MODEL or scaled-MODEL; of dense tests by MODEL@SCALE


def given_rates(words: Sequence[str]) -> Rates:
    """--throughput: MODEL=IMAGES_PER_SECOND, or files of `benchmark.py train|dense --json`.

    Raises UserError for anything else.
    """
    rates: Rates = {}
    for word in words:
        model, equals, speed = word.partition("=")
        try:
            speeds = {model: float(speed)} if equals else _read_speeds(Path(word))
        except (OSError, ValueError, KeyError, TypeError):
            speeds = {}
        if not speeds or not all(speed > 0 for speed in speeds.values()):
            raise UserError(
                f"--throughput {word} is neither MODEL=IMAGES_PER_SECOND nor a file that "
                "`scripts/benchmark.py train --json` or `dense --json` wrote"
            )
        source = "given" if equals else word
        rates |= {name: Throughput(speed, source) for name, speed in speeds.items()}
    return rates


def _read_speeds(path: Path) -> dict[str, float]:
    speeds = {}
    for row in json.loads(path.read_text())["rows"]:
        if row["path"] == "ours":
            name = f"{row['model']}@{row['scale']}" if "scale" in row else row["model"]
            speeds[name] = float(row["images_per_second"])
    return speeds


def run_rates(runs: Sequence[Run]) -> Rates:
    """Speeds of runs that reproduce.py started with a known number of processes."""
    by_model: dict[str, list[float]] = {}
    for run in runs:
        known = [s.processes for s in run.sessions if s.program == "train.py" and s.processes]
        if known and run.images_per_second:
            by_model.setdefault(run.model, []).append(run.images_per_second / known[-1])
    return {model: Throughput(median(rates), "runs so far") for model, rates in by_model.items()}


def gpu_hours(job: Job, rates: Rates) -> float | None:
    """Hours that a job still takes on one GPU; None: not measured, as for ten-view tests."""
    is_test = job.program == "eval.py"
    names = [f"{job.model}@{scale}" for scale in job.dense_scales] if is_test else [job.model]
    if not names or any(name not in rates for name in names):
        return None
    images = job.left / len(names)
    return sum(images / rates[name].images_per_second for name in names) / 3600


def cost_table(jobs: Sequence[Job], rates: Rates, launcher: Launcher, card: str = "H100") -> str:
    """Each job with its state, its cost and its command; then the sums."""
    lines = []
    train_hours, test_hours = list[float](), list[float]()  # by measured speeds
    unmeasured = 0.0  # multiply-adds of the other jobs
    for job in jobs:
        cost, hours = f", {job.left:,} images", gpu_hours(job, rates)
        if hours is not None:
            cost += f", {hours:,.2f} GPU hours"
            (train_hours if job.program == "train.py" else test_hours).append(hours)
        elif job.multiply_adds:
            multiply_adds = job.multiply_adds * job.left
            cost += f", {hours_by_arithmetic(multiply_adds, card):,.2f} GPU hours by arithmetic"
            unmeasured += multiply_adds
        wanted_by = f" [{', '.join(job.wanted_by)}]"
        lines.append(f"# {job.name}: {job.state}{'' if job.done else cost}{wanted_by}")
        lines.append(shlex.join(launcher.command(job)))
    runs = [job for job in jobs if job.program == "train.py"]
    train_images = sum(job.left for job in runs)
    test_images = sum(job.left for job in jobs) - train_images
    lines.append(
        f"\n{len(runs)} runs, {train_images:,} images to train on, {test_images:,} to test on."
    )
    measured = sorted({job.model for job in runs} & rates.keys())
    missing = sorted({job.model for job in runs if not job.done} - rates.keys())
    if train_hours:
        models = " of the measured models" if missing else ""
        lines.append(f"Training{models} takes about {sum(train_hours):,.1f} GPU hours.")
        speeds = [f"{m} {rates[m].images_per_second:.4g} ({rates[m].source})" for m in measured]
        lines.append(f"Images per second of one GPU: {', '.join(speeds)}.")
    if test_hours:
        lines.append(f"{len(test_hours)} dense tests take about {sum(test_hours):,.1f} GPU hours.")
    if unmeasured:
        subject = "The others take" if train_hours or test_hours else "All takes"
        total = hours_by_arithmetic(unmeasured, card)
        lines.append(f"{subject} about {total:,.1f} GPU hours {basis(card)}.")
    if missing:
        lines.append(
            f"No throughput measured for {', '.join(missing)}: give --throughput "
            "MODEL=IMAGES_PER_SECOND, or a file of `scripts/benchmark.py train --json`."
        )
    return "\n".join(lines)
