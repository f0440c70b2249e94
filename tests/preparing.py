"""What tests of scripts/prepare_imagenet.py share: the program, and facts of the fake release."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import run_program
from tests.tars import DEVKIT, TEST, TRAIN, VAL, Official

PROGRAM = "scripts/prepare_imagenet.py"
Done = subprocess.CompletedProcess[str]


def prepare(*arguments: object) -> Done:
    """Run the program; the test fails if it does."""
    return run_program(PROGRAM, *map(str, arguments))


def refused(*arguments: object) -> Done:
    """Run the program, which must end with one sentence on stderr and exit status 1."""
    done = run_program(PROGRAM, *map(str, arguments), check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done


def wrong(done: Done) -> list[str]:
    """What `check` has found."""
    return [line[7:] for line in done.stdout.splitlines() if line.startswith("WRONG: ")]


def write_facts(official: Official, path: Path, **changes: Any) -> Path:
    """Facts of the fake release, its sums by the md5sum program; `changes` replace some."""
    names = [TRAIN, VAL, TEST, DEVKIT]
    files = [official.root / name for name in names if (official.root / name).exists()]
    lines = subprocess.run(["md5sum", *files], capture_output=True, text=True, check=True).stdout
    counts = [len(files) for files in official.train.values()]
    facts = {
        "md5": {os.path.basename(name): md5 for md5, name in map(str.split, lines.splitlines())},
        "num_classes": len(official.wnids),
        "num_images": {
            "train": sum(counts),
            "val": len(official.val),
            "test": len(official.test),
        },
        "per_class": {"train": [min(counts), max(counts)], "val": [2, 2]},
        "odd": {},
    }
    path.write_text(json.dumps(facts | changes))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Path below the folder -> content, of all files."""
    files = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
