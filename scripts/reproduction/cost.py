"""What jobs cost: images to process, and GPU hours, from measured speeds or by arithmetic."""

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


Rates = dict[str, Throughput]  # by MODEL; of scaled experiments scaled-MODEL; of tests MODEL@SCALE


def given_rates(words: Sequence[str]) -> Rates:
    """--throughput: MODEL=RATE, or files that `benchmark.py train|dense --json` printed.

    Raises UserError for anything else.
    """
    rates: Rates = {}
    for word in words:
        model, equals, rate = word.partition("=")
        try:
            if equals:
                rates[model] = Throughput(_positive(float(rate)), "given")
                continue
            rows = json.loads(Path(word).read_text())["rows"]
            ours = [row for row in rows if row["path"] == "ours"]
            for row in ours:
                name = f"{row['model']}@{row['scale']}" if "scale" in row else row["model"]
                rates[name] = Throughput(_positive(row["images_per_second"]), word)
            if not ours:
                raise ValueError(word)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--throughput {word} is neither MODEL=IMAGES_PER_SECOND nor a file that "
                "`scripts/benchmark.py train --json` or `dense --json` wrote"
            ) from error
    return rates


def _positive(rate: float) -> float:
    if not rate > 0:
        raise ValueError(rate)
    return rate


def run_rates(runs: Sequence[Run]) -> Rates:
    """From the metrics of runs that reproduce.py started with a known number of processes."""
    by_model: dict[str, list[float]] = {}
    for run in runs:
        known = [s.processes for s in run.sessions if s.program == "train.py" and s.processes]
        if known and run.images_per_second:
            by_model.setdefault(run.model, []).append(run.images_per_second / known[-1])
    return {model: Throughput(median(rates), "runs so far") for model, rates in by_model.items()}


def gpu_hours(job: Job, rates: Rates) -> float | None:
    """Hours of one device that a job still needs; None: not measured, as for ten-view tests."""
    is_test = job.program == "eval.py"
    names = [f"{job.model}@{scale}" for scale in job.dense_scales] if is_test else [job.model]
    if not names or any(name not in rates for name in names):
        return None
    images = job.left / len(names)
    return sum(images / rates[name].images_per_second for name in names) / 3600


def cost_table(jobs: Sequence[Job], rates: Rates, launcher: Launcher, card: str = "H100") -> str:
    """Every job with its command, its state and what it still has to process, and the sums."""
    lines = []
    trained, tested = list[float](), list[float]()  # hours of jobs whose speed was measured
    unmeasured = 0.0  # multiply-adds of the others
    for job in jobs:
        cost, hours = f", {job.left:,} images", gpu_hours(job, rates)
        if hours is not None:
            cost += f", {hours:,.2f} GPU hours"
            (trained if job.program == "train.py" else tested).append(hours)
        elif job.multiply_adds:
            operations = job.multiply_adds * job.left
            cost += f", {hours_by_arithmetic(operations, card):,.2f} GPU hours by arithmetic"
            unmeasured += operations
        wanted = f" [{', '.join(job.wanted_by)}]"
        lines.append(f"# {job.name}: {job.state}{'' if job.done else cost}{wanted}")
        lines.append(shlex.join(launcher.command(job)))
    training = [job for job in jobs if job.program == "train.py"]
    left = sum(job.left for job in training)
    tests = sum(job.left for job in jobs) - left
    lines += ["", f"{len(training)} runs, {left:,} images to train on, {tests:,} to test on."]
    models = {job.model for job in training}
    missing = sorted({job.model for job in training if not job.done} - rates.keys())
    if trained:
        of = " of the measured models" if missing else ""
        lines.append(f"Training{of} takes about {sum(trained):,.1f} GPU hours.")
        used = [(model, rates[model]) for model in sorted(models & rates.keys())]
        speeds = [f"{model} {rate.images_per_second:.4g} ({rate.source})" for model, rate in used]
        lines.append(f"Images per second of one GPU: {', '.join(speeds)}.")
    if tested:
        lines.append(f"{len(tested)} dense tests take about {sum(tested):,.1f} GPU hours.")
    if total := hours_by_arithmetic(unmeasured, card):
        what = "The others take" if trained or tested else "All takes"
        lines.append(f"{what} about {total:,.1f} GPU hours {basis(card)}.")
    if missing:
        lines.append(
            f"No throughput measured for {', '.join(missing)}: give --throughput "
            "MODEL=IMAGES_PER_SECOND, or a file of `scripts/benchmark.py train --json`."
        )
    return "\n".join(lines)
