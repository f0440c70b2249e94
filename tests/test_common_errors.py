"""Programs whose output nobody reads any more, as with `| head`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, checkpoint

# Prints more than its buffer holds, or less: then only the last flush fails.
PRINTING = """
import sys
from common.errors import UserError, one_sentence
with one_sentence():
    print("first", flush=True)
    sys.stdin.read()
    print("more" * int(sys.argv[1]))
    if sys.argv[2]:
        raise UserError(sys.argv[2])
"""


def without_reader(*arguments: str, both: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a program whose reader leaves after the first line; both: also the reader of stderr."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdin=subprocess.PIPE,
        stdout=write,
        stderr=write if both else subprocess.PIPE,
        text=True,
    )
    os.close(write)
    with open(read) as reader:
        reader.readline()
    _, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, stderr=errors or "")


@pytest.mark.parametrize("times", ["1", "100000"])
def test_a_reader_that_leaves_causes_no_traceback(times: str) -> None:
    done = without_reader("-c", PRINTING, times, "")
    assert (done.returncode, done.stderr) == (141, "")  # as a shell has it for SIGPIPE


def test_an_error_is_printed_even_then() -> None:
    done = without_reader("-c", PRINTING, "1", "there is no such file")
    assert (done.returncode, done.stderr) == (1, "error: there is no such file\n")
    assert without_reader("-c", PRINTING, "1", "there is no such file", both=True).returncode == 1


@pytest.mark.parametrize("times", ["1", "100000"])
def test_output_to_a_full_disk_causes_no_traceback(times: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTING.replace(", flush=True", ""), times, ""],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    sentence = "error: cannot write the output (No space left on device)\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_training_is_saved_when_its_reader_leaves(command: list[str], runs: Path) -> None:
    folder = runs / "unread"
    arguments = [*command, f"name={folder.name}"]
    done = without_reader(*arguments, "log_every=1", "checkpoint.every_steps=0")
    assert done.returncode == 75
    step = checkpoint(folder)["progress"]["step"]
    assert done.stderr == f"stopped by a signal, saved at step {step} of 25\n"
    assert 0 < step < 25
