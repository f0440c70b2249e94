"""Shared by the tests of scripts/prepare_imagenet.py: the program, and a made-up release."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from data.prepare.check import check
from data.prepare.release import Release
from tests.conftest import run_program
from tests.tars import DEVKIT, TEST, TRAIN, VAL, Official

PROGRAM = "scripts/prepare_imagenet.py"
Done = subprocess.CompletedProcess[str]


def prepare(*arguments: object) -> Done:
    """Run the program, which must succeed."""
    return run_program(PROGRAM, *map(str, arguments))


def refused(*arguments: object) -> Done:
    """Run the program, which must end with one sentence on stderr and exit status 1."""
    done = run_program(PROGRAM, *map(str, arguments), check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done


def wrong(done: Done) -> list[str]:
    """The faults that `check` has printed."""
    return [line[7:] for line in done.stdout.splitlines() if line.startswith("WRONG: ")]


@dataclass
class Checked:
    """What `check` says about a folder."""

    told: str  # lines
    faults: list[str]


def checked(root: Path, release: Release, *, md5: bool = True, decode: int = 0) -> Checked:
    """Check a folder against a release, in this process."""
    lines: list[str] = []
    faults = check(root, release, lines.append, md5=md5, decode=decode)
    assert [line[7:] for line in lines if line.startswith("WRONG: ")] == faults
    return Checked("".join(f"{line}\n" for line in lines), faults)


def release_of(official: Official, odd_images: dict[str, list[str]] | None = None) -> Release:
    """The facts of the made-up release, with MD5 sums by the md5sum program."""
    names = [TRAIN, VAL, TEST, DEVKIT]
    files = [official.root / name for name in names if (official.root / name).exists()]
    lines = subprocess.run(["md5sum", *files], capture_output=True, text=True, check=True).stdout
    counts = [len(files) for files in official.train.values()]
    return Release(
        md5={os.path.basename(name): md5 for md5, name in map(str.split, lines.splitlines())},
        num_classes=len(official.wnids),
        num_images={
            "train": sum(counts),
            "val": len(official.val),
            "test": len(official.test),
        },
        per_class={"train": (min(counts), max(counts)), "val": (2, 2)},
        odd_images=odd_images or {},
    )


def tree(folder: Path) -> dict[str, bytes]:
    """Path below the folder -> content, of all files."""
    files = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
