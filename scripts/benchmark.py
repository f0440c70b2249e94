"""Speed, compared with what a user would do otherwise.

python scripts/benchmark.py data [--json] [--root FOLDER] [--images N] [--rounds N] [--threads N]
python scripts/benchmark.py train [--json] [--model A] [--batch N] [--precision bf16] [--compile]
python scripts/benchmark.py dense [--json] [--model A] [--scales 256 384 480] [--precision bf16]
python scripts/benchmark.py checkpoint [--json] [--model C] [--batch N] [--crop N] [--folder FOLDER]
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py

from common.errors import one_sentence
from scripts.benchmarks.benchmark import Benchmark, add_options
from scripts.benchmarks.checkpoint import CheckpointBenchmark
from scripts.benchmarks.data import DataBenchmark
from scripts.benchmarks.dense import DenseBenchmark
from scripts.benchmarks.train import TrainBenchmark

BENCHMARKS: dict[str, type[Benchmark]] = {
    "data": DataBenchmark,
    "train": TrainBenchmark,
    "dense": DenseBenchmark,
    "checkpoint": CheckpointBenchmark,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line: a command for each benchmark, with its options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="name", required=True, metavar="|".join(BENCHMARKS))
    for name, kind in BENCHMARKS.items():
        command = commands.add_parser(
            name, help=kind.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        add_options(command, kind)
        command.add_argument("--json", action="store_true", help="print JSON, not a table")
    return parser


def main() -> None:
    """Run the benchmark that the command line names."""
    options = vars(build_parser().parse_args())
    name, json = options.pop("name"), options.pop("json")
    with one_sentence():
        benchmark = BENCHMARKS[name](**options)
        rows = benchmark.measure()
        print(benchmark.as_json(rows) if json else benchmark.as_table(rows))


if __name__ == "__main__":
    main()
