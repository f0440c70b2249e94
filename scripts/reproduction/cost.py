"""What jobs cost: images to process, and hours where the speed of training has been measured."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from analysis.report.runs import Run
from common.errors import UserError
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
    found: Rates = {}
    for word in words:
        model, equals, rate = word.partition("=")
        try:
            if equals:
                found[model] = Throughput(_positive(float(rate)), "given")
                continue
            rows = [
                row for row in json.loads(Path(word).read_text())["rows"] if row["path"] == "ours"
            ]
            for row in rows:
                name = f"{row['model']}@{row['scale']}" if "scale" in row else row["model"]
                found[name] = Throughput(_positive(row["images_per_second"]), word)
            if not rows:
                raise ValueError(word)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--throughput {word} is neither MODEL=IMAGES_PER_SECOND nor a file that "
                "`scripts/benchmark.py train --json` or `dense --json` wrote"
            ) from error
    return found


def _positive(rate: float) -> float:
    if not rate > 0:
        raise ValueError(rate)
    return rate


def run_rates(runs: Sequence[Run]) -> Rates:
    """From the metrics of runs that reproduce.py started with a known number of processes."""
    seen: dict[str, list[float]] = {}
    for run in runs:
        known = [one for one in run.sessions if one["program"] == "train.py" and one["processes"]]
        if known and run.images_per_second:
            seen.setdefault(run.model, []).append(run.images_per_second / known[-1]["processes"])
    return {model: Throughput(median(rates), "runs so far") for model, rates in seen.items()}


def hours(job: Job, rates: Rates) -> float | None:
    """Hours of one device that a job still needs; None: not measured, as are tests with crops."""
    is_test = job.program == "eval.py"
    names = [f"{job.model}@{scale}" for scale in job.dense] if is_test else [job.model]
    if not names or any(name not in rates for name in names):
        return None
    each = (job.images - job.seen) / len(names)
    return sum(each / rates[name].images_per_second for name in names) / 3600


def cost_table(jobs: Sequence[Job], rates: Rates, launcher: Launcher) -> str:
    """Every job with its command, its state, what it has to process, and the sums."""
    lines = []
    for job in jobs:
        needed = hours(job, rates)
        left = job.images - job.seen
        cost = f"{left:,} images" + ("" if needed is None else f", {needed:,.2f} GPU hours")
        lines += [f"# {job.name}: {job.state}" + ("" if job.done else f", {cost}")]
        lines += [shlex.join(launcher.command(job))]
    training = [job for job in jobs if job.program == "train.py"]
    left = sum(job.images - job.seen for job in training)
    tests = sum(job.images - job.seen for job in jobs if job.program == "eval.py")
    lines += ["", f"{len(training)} runs, {left:,} images to train on, {tests:,} to test on."]
    known = [value for job in training if (value := hours(job, rates)) is not None]
    missing = sorted({job.model for job in training if job.model not in rates and not job.done})
    if known:
        of = " of the measured models" if missing else ""
        lines.append(f"Training{of} takes about {sum(known):,.1f} GPU hours.")
        used = {job.model for job in training} & rates.keys()
        told = (f"{m} {rates[m].images_per_second:.4g} ({rates[m].source})" for m in sorted(used))
        lines.append(f"Images per second of one GPU: {', '.join(told)}.")
    tested = [value for job in jobs if job.dense and (value := hours(job, rates)) is not None]
    if tested:
        lines.append(f"{len(tested)} dense tests take about {sum(tested):,.1f} GPU hours.")
    if missing:
        lines.append(
            f"GPU hours: no throughput measured for {', '.join(missing)}; give --throughput "
            "MODEL=IMAGES_PER_SECOND, or a file of `scripts/benchmark.py train --json`."
        )
    return "\n".join(lines)
