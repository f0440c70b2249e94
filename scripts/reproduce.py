"""The paper's tables and figures, one command each.

python scripts/reproduce.py table4 [--data /imagenet] [--dry-run] [--launcher local|torchrun|slurm]
python scripts/reproduce.py fig3 --scaled --data FOLDER [--steps N] [--seeds 0 1 2]
python scripts/reproduce.py all [--dry-run]
python scripts/reproduce.py analysis [--models small14 small30] [--batch N] [--seeds N]
python scripts/reproduce.py analysis --rewrite
python scripts/reproduce.py start --data FOLDER [--models small14] [--steps 20] [-- KEY=VALUE ...]
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py

import torch

from analysis.propagation.page import write_page
from analysis.propagation.study import Settings, measure_all, read_signals, write_signals
from analysis.start.page import write_start_page
from analysis.start.remedies import REMEDIES
from analysis.start.study import Settings as StartSettings
from analysis.start.study import study as start_study
from common.errors import one_sentence
from configs.validate import require
from scripts.reproduction.tables import add_targets


def analysis(options: argparse.Namespace) -> None:
    """Signal propagation (Sec. 2.2); needs no data."""
    models = tuple(dict.fromkeys(options.models))
    settings = Settings(models, crop=options.crop, batch=options.batch, seeds=options.seeds)
    if options.rewrite:
        given = "--models, --crop, --batch, --seeds"
        require(settings == Settings(), f"--rewrite takes its settings from the file, not {given}")
    else:
        write_signals(measure_all(settings), options.out)
    # Read back, rounded, so that --rewrite gives the same page.
    for claim in write_page(read_signals(options.out), options.out):
        paper = f"paper {claim.paper}, " if claim.paper else ""
        closed = f"closed form {claim.closed_form}, " if claim.closed_form else ""
        print(f"{claim.statement}: {paper}{closed}measured {claim.measured}")
    print(f"Tables and figures: {options.out / 'README.md'}")


def add_analysis(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command `analysis` and its options."""
    usual = Settings()
    parser = commands.add_parser("analysis", help=analysis.__doc__)
    parser.add_argument("--models", nargs="+", default=usual.models, help="any model of train.py")
    parser.add_argument("--crop", type=int, default=usual.crop, help="side of the images, pixels")
    parser.add_argument("--batch", type=int, default=usual.batch, help="images of a seed")
    parser.add_argument("--seeds", type=int, default=usual.seeds, help="networks drawn")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "analysis")
    parser.add_argument(
        "--rewrite", action="store_true", help="measure nothing, write all from OUT/signals.json"
    )
    parser.set_defaults(run=analysis)


def start(options: argparse.Namespace) -> None:
    """The first steps of training: do they diverge, and what keeps them from it."""
    settings = StartSettings(
        data=options.data,
        models=options.models,
        acts=options.acts,
        inits=options.inits,
        remedies=options.remedies,
        seeds=options.seeds,
        steps=options.steps,
        curvature_images=options.curvature_images,
        device="cuda" if torch.cuda.is_available() else "cpu",
        overrides=options.overrides,
    )
    start_study(settings, options.out / "records")
    print(f"Tables and figures: {write_start_page(options.out)}")


def add_start(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command `start` and its options."""
    usual = StartSettings("")
    parser = commands.add_parser("start", help=start.__doc__)
    parser.add_argument("--data", required=True, help="an image folder, with train/<class>/ in it")
    parser.add_argument("--models", nargs="+", default=usual.models, help="any model of train.py")
    parser.add_argument("--acts", nargs="+", default=usual.acts, help="any act of train.py")
    parser.add_argument("--inits", nargs="+", default=usual.inits, help="any init of train.py")
    parser.add_argument("--remedies", nargs="+", default=usual.remedies, choices=list(REMEDIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=usual.seeds)
    parser.add_argument("--steps", type=int, default=usual.steps)
    parser.add_argument(
        "--curvature-images",
        type=int,
        default=usual.curvature_images,
        help="of a batch, for the curvature with the first seed; 0: not measured",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "start")
    parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="of train.py")
    parser.set_defaults(run=start)


def main(arguments: list[str]) -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_targets(commands)
    add_analysis(commands)
    add_start(commands)
    options = parser.parse_args(arguments)
    with one_sentence():
        options.run(options)


if __name__ == "__main__":
    main(sys.argv[1:])
