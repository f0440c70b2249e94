"""A rehearsal of everything, before the weeks on ImageNet: minutes on a CPU.

python scripts/rehearsal.py FOLDER [--images /any/image/folder] [--classes 1000] [--kills 6]
python scripts/rehearsal.py FOLDER --classes 10 --train 3 --val 2 --steps 4       the smallest

Writes a small made-up ImageNet into FOLDER/rehearsal, in files like the official ones, and runs
`reproduce.py all --scaled` on it with tiny networks. All of that, or the program that it runs, is
killed at random times, and the same command resumes. In the end every table and figure must be
filled, and a run that was killed must have the weights of one that was not.
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
_LONGEST = 30.0  # seconds from one kill to the next
_TIMES = ("images_per_second", "data_wait")  # what differs between two equal runs


def tiny(num_classes: int, steps: int) -> list[str]:
    """Keys of train.py that make scaled runs smaller still."""
    return [
        "model.fc=[16,16]",
        "data.crop=32",
        "batch_size=16",
        "precision=fp32",
        f"data.num_classes={num_classes}",
        f"log_every={max(1, steps // 10)}",
        f"val_every={max(1, steps // 2)}",
        f"checkpoint.every_steps={max(1, steps // 4)}",
    ]


def reproduction(folder: Path, num_classes: int, steps: int, overrides: Sequence[str]) -> list[str]:
    """Arguments of reproduce.py."""
    arguments = [
        "all",
        "--scaled",
        f"--data={folder / 'rehearsal'}",
        f"--steps={steps}",
        "--seeds=0",
    ]
    arguments += [f"--runs={folder / 'runs'}", f"--results={folder / 'results'}"]
    return [*arguments, "--", *tiny(num_classes, steps), *overrides]


def rehearse(command: Sequence[str], rng: random.Random, kills: int) -> list[list[str]]:
    """Run the command to its end, killed and typed again; returns the programs that were killed.

    A kill ends all, as when a machine loses its power, or only the program that the command runs.
    Raises UserError if the command fails when nothing kills it.
    """
    killed = []
    process = subprocess.Popen(command, start_new_session=True)
    try:
        for _ in range(kills):
            try:
                process.wait(rng.uniform(0, _LONGEST))
            except subprocess.TimeoutExpired:
                program = _running(process.pid)
                killed += [_command_of(program)] if program else []
                if program and rng.random() < 0.5:
                    os.kill(program, signal.SIGKILL)
                else:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                print(
                    f"killed: {shlex.join(killed[-1]) if program else 'at its start'}", flush=True
                )
            if process.poll() is not None:
                process = subprocess.Popen(command, start_new_session=True)
        if process.wait():  # it goes on after the death of a program, and says so in the end
            process = subprocess.Popen(command, start_new_session=True)
        if status := process.wait():
            raise UserError(f"exit status {status} of {shlex.join(command)}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return killed


def _running(parent: int) -> int | None:
    """The process that another one has started; None: there is none now."""
    children = Path(f"/proc/{parent}/task").glob("*/children")
    return next((int(word) for path in children for word in path.read_text().split()), None)


def _command_of(process: int) -> list[str]:
    """The words of its command, without the interpreter's path; []: it has just ended."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[1:-1]
    except OSError:
        return []
    return [os.fsdecode(word) for word in words]


def unfilled(results: Path) -> list[str]:
    """What is missing in the report of a rehearsal: tables, figures, cells of tables."""
    names = [edition.suffix for edition in editions(load(results)) if not edition.is_paper]
    if len(names) != 1:
        return [f"{results} has {len(names)} editions of scaled runs"]
    faults = _empty_cells(results / "table3.md")
    for name in _TABLES:
        faults += _empty_cells(results / f"{name}{names[0]}.md")
    for name in _FIGURES:
        path = results / f"{name}{names[0]}.png"
        if not path.is_file():
            faults.append(f"{path.name} is missing")
            continue
        with Image.open(path) as picture:
            if picture.convert("L").getextrema() != (0, 255):
                faults.append(f"{path.name} is blank")
    return faults


def _empty_cells(path: Path) -> list[str]:
    """Cells of a Markdown table without a value, other than the paper's own."""
    if not path.is_file():
        return [f"{path.name} is missing"]
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    header, _, *rows = [line.strip("| ").split(" | ") for line in lines]
    return [
        f"{path.name}, {row[0]}, {column}: {cell!r}"
        for row in rows
        for column, cell in zip(header, row, strict=True)
        if "paper" not in column
        and (cell in ("", BLANK) or any(word in cell for word in ("not run", "not te", "partial")))
    ]


def compare(words: Sequence[str], folder: Path) -> str:
    """Train again a run that was killed, undisturbed this time; returns what was compared.

    Raises UserError if weights or metrics differ.
    """
    import torch  # not above: --help answers without it

    undisturbed = folder / "undisturbed"
    shutil.rmtree(undisturbed, ignore_errors=True)
    subprocess.run([sys.executable, *words, f"runs={undisturbed}"], check=True)
    (again,) = undisturbed.iterdir()
    runs = [again, folder / "runs" / again.name]
    states = [torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in runs]
    ours, theirs = (state["network"] for state in states)
    metrics = [
        [{k: v for k, v in line.items() if k not in _TIMES} for line in read_json_lines(path)]
        for path in (run / "metrics.jsonl" for run in runs)
    ]
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    if not same or metrics[0] != metrics[1]:
        raise UserError(f"{runs[1]}, which was killed, differs from {again}, which was not")
    return f"{again.name} was killed and has the weights and metrics of an undisturbed run"


def main(arguments: list[str]) -> None:
    """Write the data set, run everything, check what came out."""
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
    options = parser.parse_args(arguments)
    with one_sentence():
        run(options)


def run(options: argparse.Namespace) -> None:
    """The rehearsal that the command line asks for; raises UserError if anything is amiss."""
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
    killed = rehearse(command, random.Random(seed), options.kills)
    if faults := unfilled(folder / "results"):
        print("\n".join(faults))
        raise UserError(f"{len(faults)} places of the report are not filled, see above")
    trained = [words for words in killed if words and words[0].endswith("train.py")]
    if trained:
        print(compare(trained[-1], folder))
    print(f"every table and figure is filled: {folder / 'results' / 'README.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
