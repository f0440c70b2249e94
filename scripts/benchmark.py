"""Speed, beside what a user would do otherwise.

python scripts/benchmark.py data [--json] [--root FOLDER] [--images N] [--rounds N] [--threads N]
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs.errors import one_sentence
from scripts.benchmark_data import Load, measure_data, table


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def data(arguments: argparse.Namespace) -> None:
    """Images per second of each way to load training crops."""
    options = {
        name: getattr(arguments, name)
        for name in ("images", "rounds", "threads", "device")
        if getattr(arguments, name) is not None
    }
    rows = measure_data(arguments.root, what := Load(**options))
    if arguments.json:
        print(json.dumps({"threads": what.threads, "device": what.device, "rows": rows}))
    else:
        print(table(rows, what))


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_subparsers(required=True, metavar="data")
    loading = what.add_parser("data", help="loading and decoding training crops")
    loading.set_defaults(run=data)
    loading.add_argument("--root", type=Path, help="a data set; default: a generated one")
    loading.add_argument("--images", type=_positive, help="timed for each row in a round")
    loading.add_argument("--rounds", type=_positive, help="the best one counts; default: 3")
    loading.add_argument("--threads", type=_positive, help="default: the CPUs we may use")
    loading.add_argument("--device", choices=["cpu", "gpu"], help="of DALI; default: what there is")
    loading.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with one_sentence():
        arguments.run(arguments)


if __name__ == "__main__":
    main()
