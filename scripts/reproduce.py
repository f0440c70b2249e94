"""The paper's tables and figures, one command each.

python scripts/reproduce.py table4 [--data /imagenet] [--dry-run] [--launcher local|torchrun|slurm]
python scripts/reproduce.py fig3 --scaled --data FOLDER [--steps N] [--seeds 0 1 2]
python scripts/reproduce.py all [--dry-run]
python scripts/reproduce.py report
python scripts/reproduce.py compare runs/A runs/B [runs/C ...] [--out FILE.png]
python scripts/reproduce.py analysis [--models small14 small30] [--batch N] [--seeds N]
python scripts/reproduce.py analysis --rewrite
python scripts/reproduce.py start --data FOLDER [--models small14] [--steps 20] [-- KEY=VALUE ...]
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py

# Each command imports torch, scipy and matplotlib, which load for seconds, only if it needs them.
from analysis.report.runs import load
from common.errors import Stopped, UserError, one_sentence
from configs.validate import require
from models.describe import CARDS
from scripts.reproduction.cost import cost_table, given_rates, run_rates
from scripts.reproduction.launch import LAUNCHERS, Launcher, Runner
from scripts.reproduction.plan import RUNS, TARGETS, Request, plan

RESULTS = Path("results")
Commands = argparse._SubParsersAction  # argparse has no public name for it


def reproduce(options: argparse.Namespace) -> None:
    """Run what is missing for the targets, then write the report.

    Raises UserError, after the report, if a job has failed.
    """
    require(
        not options.scaled or bool(options.data or options.overrides),
        "--scaled needs --data FOLDER, with train/<class>/ and val/<class>/ in it",
    )
    require(options.scaled or options.steps is None, "--steps needs --scaled")
    require(options.steps is None or options.steps > 0, "--steps must be at least 1")
    require(options.processes > 0, "--processes must be at least 1")
    is_all = options.target == "all"
    request = Request(
        targets=TARGETS if is_all else [options.target],
        scaled=options.scaled,
        data=options.data,
        runs=options.runs,
        seeds=options.seeds,
        steps=options.steps,
        overrides=options.overrides,
    )
    jobs = plan(request)
    launcher = Launcher(options.launcher, options.processes)
    if is_all and not options.scaled:
        _analyse_once(options.results / "analysis", dry_run=options.dry_run)
    if options.dry_run:
        rates = run_rates(load(options.results)) | given_rates(options.throughput)
        print(cost_table(jobs, rates, launcher, options.card))
        return
    outcome = Runner(launcher).run(jobs)
    report(options)
    for command, why in outcome.failed.items():
        print(f"failed ({why}): {command}", file=sys.stderr)
    if outcome.stopped:
        raise Stopped("stopped; the same command goes on")
    if outcome.failed:
        raise UserError(f"{len(outcome.failed)} commands failed, see above; the others are done")


def _analyse_once(folder: Path, *, dry_run: bool) -> None:
    is_done = (folder / "README.md").is_file()
    print(f"# analysis: {'done' if is_done else 'to do, needs no data'}")
    print(f"python {os.path.relpath(__file__)} analysis --out {folder}", flush=True)
    if not is_done and not dry_run:
        analysis(argparse.Namespace(out=folder, rewrite=False))


def report(options: argparse.Namespace) -> None:
    """Read all runs again and write all tables, figures and pages; runs nothing."""
    from analysis.report.read import collect
    from analysis.report.report import write_report
    from analysis.start.page import write_start_page

    runs = collect(options.runs, options.results)
    if (options.results / "start" / "records").is_dir():
        write_start_page(options.results / "start")
    print(f"Report: {write_report(runs, options.results, options.runs)}")


def analysis(options: argparse.Namespace) -> None:
    """Signal propagation (Sec. 2.2); needs no data."""
    from analysis.propagation.page import write_page
    from analysis.propagation.study import Settings, measure_all, read_signals, write_signals

    given = _given(options, "out", "rewrite")
    if "models" in given:
        given["models"] = tuple(dict.fromkeys(given["models"]))  # each once
    settings = Settings(**given)
    if options.rewrite:
        keys = "--models, --crop, --batch, --seeds"
        require(settings == Settings(), f"--rewrite takes its settings from the file, not {keys}")
    else:
        write_signals(measure_all(settings), options.out)
    # Read back, rounded, so that --rewrite gives the same page.
    print(f"Page: {write_page(read_signals(options.out), options.out)}")


def start(options: argparse.Namespace) -> None:
    """The first steps of training: do they diverge, and what keeps them from it."""
    from torch.cuda import is_available

    from analysis.start.page import write_start_page
    from analysis.start.study import Settings, study

    device = "cuda" if is_available() else "cpu"
    study(Settings(**_given(options, "out"), device=device), options.out / "records")
    print(f"Page: {write_start_page(options.out)}")


def _given(options: argparse.Namespace, *others: str) -> dict[str, Any]:
    """The settings on the command line but `others`; a study has defaults for the rest."""
    return {key: value for key, value in vars(options).items() if key not in ("run", *others)}


def compare(options: argparse.Namespace) -> None:
    """Curves of several runs in one picture, and the keys in which they differ."""
    from analysis.compare import compare as draw_and_compare

    out = options.out or options.folders[0].parent / "comparison.png"
    print(draw_and_compare(options.folders, out))
    print(f"Picture: {out}")


def _add_target(commands: Commands, target: str, text: str) -> None:
    parser = commands.add_parser(target, help=text)
    parser.set_defaults(run=reproduce, target=target)
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
    parser.add_argument(
        "--card", choices=CARDS, default="H100", help="for estimates where none is measured"
    )
    parser.add_argument("--scaled", action="store_true", help="short runs on small images")
    parser.add_argument("--steps", type=int, help="of a scaled run")
    _add_folders(parser)
    parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="for train.py")


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the run folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to report into")


def _add_analysis(commands: Commands) -> None:
    parser = commands.add_parser(
        "analysis", help=analysis.__doc__, argument_default=argparse.SUPPRESS
    )
    parser.set_defaults(run=analysis)
    parser.add_argument("--models", nargs="+", help="any model of train.py")
    parser.add_argument("--crop", type=int, help="side of the images, pixels")
    parser.add_argument("--batch", type=int, help="images of a seed")
    parser.add_argument("--seeds", type=int, help="number of networks drawn")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "analysis")
    text = "measure nothing, write all from OUT/signals.json"
    parser.add_argument("--rewrite", action="store_true", default=False, help=text)


def _add_start(commands: Commands) -> None:
    parser = commands.add_parser("start", help=start.__doc__, argument_default=argparse.SUPPRESS)
    parser.set_defaults(run=start)
    parser.add_argument("--data", required=True, help="an image folder, with train/<class>/ in it")
    parser.add_argument("--models", nargs="+", help="any model of train.py")
    parser.add_argument("--acts", nargs="+", help="any act of train.py")
    parser.add_argument("--inits", nargs="+", help="any init of train.py")
    parser.add_argument("--remedies", nargs="+", help="of analysis/start/remedies.py")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--steps", type=int)
    text = "images of a batch for the first seed's curvature; 0: it is not measured"
    parser.add_argument("--curvature-images", type=int, help=text)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "start")
    parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="for train.py")


def build_parser() -> argparse.ArgumentParser:
    """The command line: a command for each table and figure, and for each study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for target in TARGETS:
        _add_target(commands, target, f"the runs, tests and report of {target}")
    _add_target(commands, "all", "every table and figure")

    command = commands.add_parser("report", help="write results/ again; runs nothing")
    command.set_defaults(run=report)
    _add_folders(command)

    command = commands.add_parser("compare", help=compare.__doc__)
    command.set_defaults(run=compare)
    command.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    command.add_argument("--out", type=Path, metavar="FILE.png", help="default: beside the runs")

    _add_analysis(commands)
    _add_start(commands)
    return parser


def main(arguments: list[str]) -> None:
    """Run the command that the arguments name."""
    options = build_parser().parse_args(arguments)
    with one_sentence():
        options.run(options)


if __name__ == "__main__":
    main(sys.argv[1:])
