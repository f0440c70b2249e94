"""Speed, beside what a user would do otherwise.

python scripts/benchmark.py data [--json] [--root FOLDER] [--images N] [--rounds N] [--threads N]
python scripts/benchmark.py train [--json] [--model A] [--batch N] [--precision bf16] [--compile]
python scripts/benchmark.py dense [--json] [--model A] [--scales 256 384 480] [--precision bf16]
python scripts/benchmark.py checkpoint [--json] [--model C] [--batch N] [--crop N] [--folder FOLDER]
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py

from common.errors import one_sentence
from configs.schema import PRECISIONS
from scripts.benchmarks.checkpoint import CheckpointLoad, checkpoint_rows, checkpoint_table
from scripts.benchmarks.data import Load, measure_data, sample, table
from scripts.benchmarks.dense import DenseLoad, dense_rows, dense_table
from scripts.benchmarks.index import index_rows, index_table, reading_rows
from scripts.benchmarks.train import TrainLoad, train_rows, train_table


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given on the command line; the rest keeps its default."""
    unused = ("run", "json", "root")
    given = {k: v for k, v in vars(arguments).items() if k not in unused and v is not None}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}


def _show(
    arguments: argparse.Namespace, rows: list[dict[str, Any]], what: Any, text: str, **more: Any
) -> None:
    facts = {key: value for key, value in asdict(what).items() if key in ("threads", "device")}
    print(json.dumps({**facts, "rows": rows, **more}) if arguments.json else text)


def data(arguments: argparse.Namespace) -> None:
    """Images per second of each way to load training crops; the list of images; reading them."""
    what = Load(**_options(arguments))
    with sample(arguments.root) as (folder, images):
        rows = measure_data(folder, what)
        reading = reading_rows(images, what.rounds)
    index = index_rows(what.rounds)
    text = f"{table(rows, what)}\n\n{index_table(index, reading)}"
    _show(arguments, rows, what, text, index=index, reading=reading)


def train(arguments: argparse.Namespace) -> None:
    """Images per second of the training step."""
    what = TrainLoad(**_options(arguments))
    rows = train_rows(what)
    _show(arguments, rows, what, train_table(rows, what))


def dense(arguments: argparse.Namespace) -> None:
    """Images per second of dense testing."""
    what = DenseLoad(**_options(arguments))
    rows = dense_rows(what)
    _show(arguments, rows, what, dense_table(rows, what))


def checkpoint(arguments: argparse.Namespace) -> None:
    """Seconds of training that a checkpoint costs."""
    what = CheckpointLoad(**_options(arguments))
    rows = checkpoint_rows(what)
    _show(arguments, rows, what, checkpoint_table(rows, what))


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_subparsers(required=True, metavar="data|train|dense|checkpoint")
    loading = what.add_parser("data", help="loading and decoding training crops")
    loading.set_defaults(run=data)
    loading.add_argument("--root", type=Path, help="a data set; default: a generated one")
    loading.add_argument("--images", type=_positive, help="timed for each row in a round")
    loading.add_argument("--rounds", type=_positive, help="the best one counts; default: 3")
    loading.add_argument("--threads", type=_positive, help="default: the CPUs we may use")
    loading.add_argument("--device", choices=["cpu", "gpu"], help="of DALI; default: what there is")
    loading.add_argument("--json", action="store_true")
    training = what.add_parser("train", help="the training step, on random data")
    training.set_defaults(run=train)
    training.add_argument("--batch", type=_positive, help="images a step; default: 16")
    training.add_argument("--steps", type=_positive, help="timed in a round; default: 3")
    training.add_argument("--compile", action="store_true", help="ours with torch.compile")
    testing = what.add_parser("dense", help="dense testing of whole images")
    testing.set_defaults(run=dense)
    testing.add_argument("--scales", type=_positive, nargs="+", help="default: 256 384 480")
    testing.add_argument("--images", type=_positive, help="in a batch; default: 1")
    saving = what.add_parser("checkpoint", help="training time lost for a checkpoint")
    saving.set_defaults(run=checkpoint)
    saving.add_argument("--batch", type=_positive, help="images a step; default: 1")
    saving.add_argument("--steps", type=_positive, help="of a stretch, at least; default: 10")
    saving.add_argument("--folder", type=Path, help="where to write; default: the temporary one")
    for both in (training, testing, saving):
        both.add_argument("--model", help="default: small14 (train), A (dense), C (checkpoint)")
        both.add_argument("--crop", type=_positive, help="default: 224, or 64 (checkpoint)")
        both.add_argument("--precision", choices=PRECISIONS, help="default: fp32")
        both.add_argument("--rounds", type=_positive, help="the best one counts")
        both.add_argument("--device", choices=["cpu", "cuda"], help="default: what there is")
        both.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with one_sentence():
        arguments.run(arguments)


if __name__ == "__main__":
    main()
