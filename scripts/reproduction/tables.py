"""reproduce.py's commands for tables and figures: plan, run what is missing, report."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from analysis.report.paper import SCALED_TARGETS
from analysis.report.records import collect, load
from analysis.report.report import write_report
from analysis.start.page import write_start_page
from common.errors import UserError
from configs.validate import require
from scripts.reproduction.cost import cost_table, given_rates, run_rates
from scripts.reproduction.launch import LAUNCHERS, STOPPED, Launcher, Outcome, Runner
from scripts.reproduction.plan import RUNS, TARGETS, Request, plan

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("results")


class StoppedEarly(UserError):
    """A signal has ended the jobs; they are saved."""

    status = STOPPED
    prefix = ""


def reproduce(options: argparse.Namespace) -> None:
    """Do what is missing for the targets, then write the report.

    Raises UserError, after the report, if a job has failed.
    """
    require(
        not options.scaled or bool(options.data or options.overrides),
        "--scaled needs --data FOLDER, with train/<class>/ and val/<class>/ in it",
    )
    require(options.scaled or options.steps is None, "--steps needs --scaled")
    require(options.steps is None or options.steps > 0, "--steps must be at least 1")
    require(options.processes > 0, "--processes must be at least 1")
    targets = (SCALED_TARGETS if options.scaled else TARGETS) if options.all else [options.target]
    request = Request(
        targets=targets,
        scaled=options.scaled,
        data=options.data,
        runs=options.runs,
        seeds=options.seeds,
        steps=options.steps,
        overrides=options.overrides,
    )
    jobs = plan(request)
    launcher = Launcher(options.launcher, options.processes)
    failed = _analysis(options) if options.all and not options.scaled else {}
    if options.dry_run:
        rates = run_rates(load(options.results)) | given_rates(options.throughput)
        print(cost_table(jobs, rates, launcher))
        return
    outcome = Runner(launcher).run(jobs)
    outcome.failed |= failed
    report(options)
    _tell(outcome)


def _analysis(options: argparse.Namespace) -> dict[str, str]:
    """Signal propagation, unless it is there; returns what failed, as Outcome has it."""
    program = os.path.relpath(ROOT / "scripts" / "reproduce.py")
    command = [program, "analysis", "--out", str(options.results / "analysis")]
    done = (options.results / "analysis" / "README.md").is_file()
    told = shlex.join(["python", *command])
    print(f"# analysis: {'done' if done else 'to do, needs no data'}\n{told}", flush=True)
    if done or options.dry_run:
        return {}
    status = subprocess.run([sys.executable, *command], check=False).returncode
    return {told: f"exit status {status}"} if status else {}


def report(options: argparse.Namespace) -> None:
    """Read all runs again and write all tables, figures and pages; nothing is run."""
    runs = collect(options.runs, options.results)
    if (options.results / "start" / "records").is_dir():
        write_start_page(options.results / "start")
    print(f"Report: {write_report(runs, options.results, options.runs)}")


def _tell(outcome: Outcome) -> None:
    for command, why in outcome.failed.items():
        print(f"failed ({why}): {command}", file=sys.stderr)
    if outcome.stopped:
        raise StoppedEarly("stopped; the same command goes on")
    if outcome.failed:
        raise UserError(f"{len(outcome.failed)} commands failed, see above; the others are done")


def _places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the run folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to report into")


def _add_target(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str
) -> None:
    parser = commands.add_parser(name, help=text)
    parser.set_defaults(run=reproduce, target=name, all=name == "all", scaled=False, steps=None)
    parser.add_argument("--dry-run", action="store_true", help="print the commands and their cost")
    parser.add_argument("--data", metavar="ROOT", help="the data set; default: datasets/imagenet")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0; scaled: 0 1 2")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local")
    parser.add_argument("--processes", type=int, default=1, help="of torchrun, on this machine")
    parser.add_argument(
        "--throughput",
        nargs="+",
        default=[],
        metavar="X",
        help="MODEL=IMAGES_PER_SECOND of one GPU, or files of `benchmark.py train|dense --json`",
    )
    if name == "all" or name in SCALED_TARGETS:
        parser.add_argument("--scaled", action="store_true", help="short runs on small images")
        parser.add_argument("--steps", type=int, help="of a scaled run")
    _places(parser)
    parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="for train.py")


def add_targets(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """A command for each table and figure, `all`, and `report`."""
    for target in TARGETS:
        _add_target(commands, target, f"the runs, tests and report of {target}")
    _add_target(commands, "all", "every table and figure")
    parser = commands.add_parser("report", help="write results/ again; runs nothing")
    parser.set_defaults(run=report)
    _places(parser)
