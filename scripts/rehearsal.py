"""A rehearsal of everything, before the weeks on ImageNet: minutes on a CPU.

python scripts/rehearsal.py FOLDER [--images /any/image/folder] [--classes 1000] [--kills 6]
python scripts/rehearsal.py FOLDER --classes 10 --train 3 --val 2 --steps 4       the smallest

Writes a small made-up ImageNet into FOLDER/rehearsal, in files like the official ones, and runs
`reproduce.py all --scaled` on it with tiny networks, which is killed at random times and started
again. In the end every table and figure must be filled, and a killed run must have the weights of
one that was not disturbed.
"""

import argparse
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image

from analysis.report.paper import CURVE_FIGURES, ERROR_TABLES
from analysis.report.runs import editions, load
from analysis.table import BLANK
from common.errors import UserError, one_sentence
from common.files import read_json_lines
from scripts.reproduction.official import Size, classes_in, generated_classes, make_official

_TABLES = ["table1", *(table.name for table in ERROR_TABLES), *(fig.name for fig in CURVE_FIGURES)]
_FIGURES = ["table1", *(fig.name for fig in CURVE_FIGURES), "fig4", "fig5", "fig6", "fig7"]
_UNFILLED = ("not run", "not te", "partial")  # cells with these words have no value yet
_LONGEST = 30.0  # seconds from one kill to the next
_TIMES = ("images_per_second", "data_wait")  # these differ between two equal runs


def reproduction(folder: Path, num_classes: int, steps: int, overrides: Sequence[str]) -> list[str]:
    """Arguments of reproduce.py, for networks and runs still smaller than with --scaled alone."""
    return [
        *("all", "--scaled", f"--data={folder / 'rehearsal'}", f"--steps={steps}", "--seeds=0"),
        *(f"--runs={folder / 'runs'}", f"--results={folder / 'results'}", "--"),
        "model.fc=[16,16]",
        "data.crop=32",
        "batch_size=16",
        "precision=fp32",
        f"data.num_classes={num_classes}",
        f"log_every={max(1, steps // 10)}",
        f"val_every={max(1, steps // 2)}",
        f"checkpoint.every_steps={max(1, steps // 4)}",
        *overrides,
    ]


def run_killed(command: Sequence[str], rng: random.Random, kills: int) -> list[list[str]]:
    """Run the command to its end, killed and started again; returns what it ran when killed.

    A kill ends the command and the program that it runs, as a power failure does. Raises UserError
    if the command fails by itself.
    """
    killed = []
    for limit in [*(rng.uniform(0, _LONGEST) for _ in range(kills)), None]:
        process = subprocess.Popen(command, start_new_session=True)
        try:
            if status := process.wait(limit):
                raise UserError(f"exit status {status} of {shlex.join(command)}")
        except subprocess.TimeoutExpired:
            program = _program_of(process.pid)
            killed += [program] if program else []
            print(f"killed: {shlex.join(program) if program else 'at its start'}", flush=True)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return killed


def _program_of(parent: int) -> list[str]:
    """The command line of a child process, without the interpreter; []: there is none now."""
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for pid in children.read_text().split():
            with suppress(OSError):  # it has just ended
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:-1]
                return [os.fsdecode(word) for word in words]
    return []


def unfilled(results: Path) -> list[str]:
    """What is missing in the report of a rehearsal: tables, figures, cells of tables."""
    suffixes = [edition.suffix for edition in editions(load(results)) if not edition.is_paper]
    if len(suffixes) != 1:
        return [f"{results} has {len(suffixes)} editions of scaled runs"]
    [suffix] = suffixes
    faults = []
    for name in ("table3", *(f"{table}{suffix}" for table in _TABLES)):
        path = results / f"{name}.md"
        faults += _empty_cells(path) if path.is_file() else [f"{path.name} is missing"]
    for name in _FIGURES:
        path = results / f"{name}{suffix}.png"
        if not path.is_file():
            faults.append(f"{path.name} is missing")
            continue
        with Image.open(path) as picture:
            if picture.convert("L").getextrema() != (0, 255):
                faults.append(f"{path.name} is blank")
    return faults


def _empty_cells(path: Path) -> list[str]:
    """Cells of a Markdown table without a value, other than the paper's own."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    header, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    return [
        f"{path.name}, {row[0]}, {column}: {cell!r}"
        for row in rows
        for column, cell in zip(header, row, strict=True)
        if "paper" not in column
        and (cell in ("", BLANK) or any(words in cell for words in _UNFILLED))
    ]


def compare(words: Sequence[str], folder: Path) -> str:
    """Train a killed run again, undisturbed; returns a sentence on the comparison.

    Raises UserError if weights or metrics differ.
    """
    import torch  # not above: --help answers without it

    undisturbed = folder / "undisturbed"
    shutil.rmtree(undisturbed, ignore_errors=True)
    subprocess.run([sys.executable, *words, f"runs={undisturbed}"], check=True)
    [again] = undisturbed.iterdir()
    killed = folder / "runs" / again.name
    weights, metrics = [], []
    for run in (again, killed):
        state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
        weights.append(state["network"])
        lines = read_json_lines(run / "metrics.jsonl")
        metrics.append([{k: v for k, v in line.items() if k not in _TIMES} for line in lines])
    ours, theirs = weights
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    if not same or metrics[0] != metrics[1]:
        raise UserError(f"{killed}, which was killed, differs from {again}, which was not")
    return f"{again.name} was killed and has the weights and metrics of an undisturbed run"


def rehearse(options: argparse.Namespace) -> None:
    """Write the data set, run everything, check the report; raises UserError for any fault."""
    size = Size(options.classes, options.train, options.val)
    folder, seed = options.folder.absolute(), options.seed
    data, part = folder / "rehearsal", folder / "rehearsal.part"
    if not data.is_dir():
        shutil.rmtree(part, ignore_errors=True)
        images = options.images
        classes = classes_in(images, size) if images else generated_classes(size, seed)
        make_official(part, classes, seed)
        part.rename(data)
    command = [sys.executable, str(ROOT / "scripts" / "reproduce.py")]
    command += reproduction(folder, size.classes, options.steps, options.overrides)
    killed = run_killed(command, random.Random(seed), options.kills)
    if faults := unfilled(folder / "results"):
        print("\n".join(faults))
        raise UserError(f"{len(faults)} places of the report are not filled, see above")
    trained = [words for words in killed if words[0].endswith("train.py")]
    if trained:
        print(compare(trained[-1], folder))
    print(f"every table and figure is filled: {folder / 'results' / 'README.md'}")


def main() -> None:
    """Rehearse what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for the tars, runs and results")
    parser.add_argument("--images", help="a data set whose images to take; default: generated")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--train", type=int, default=20, help="images of a class")
    parser.add_argument("--val", type=int, default=1, help="images of a class")
    parser.add_argument("--steps", type=int, default=50, help="of a run")
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the images and the kills")
    parser.add_argument("overrides", nargs="*", metavar="-- KEY=VALUE", help="for train.py")
    options = parser.parse_args()
    with one_sentence():
        rehearse(options)


if __name__ == "__main__":
    main()
