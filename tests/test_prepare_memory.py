"""The peak memory of every command does not grow with the number of images."""

import struct
from pathlib import Path

import pytest

from tests.conftest import run_program
from tests.pictures import jpeg
from tests.preparing import PROGRAM
from tests.tars import Official, write_official

# Runs a program and prints the peak memory, in kB, of the largest of its processes. It adopts those
# that outlive their parents (the fork server), so that they are counted, and with them the workers.
MEASURE = """
import ctypes, os, resource, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
assert done.returncode == ("check" in sys.argv)  # which sees that this is not ImageNet
try:
    while True:
        os.wait()
except ChildProcessError:
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
BYTES = 60_000  # of an image


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Official]:
    """About 60 and 1,800 images: small ones, with a long comment each."""
    image = jpeg(36, 40)
    comment = b"\xff\xfe" + struct.pack(">H", BYTES + 2) + bytes(BYTES)
    data = image[:2] + comment + image[2:]
    folder = tmp_path_factory.mktemp("memory")
    return [write_official(folder / str(n), n, lambda _: data) for n in (10, 300)]


@pytest.mark.parametrize("command", ["check", "extract", "subset", "mean"])
def test_memory(
    command: str, sets: list[Official], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    peaks = []
    for number, official in enumerate(sets):
        out = tmp_path / f"out{number}"
        more = {
            "check": ["--decode"],
            "extract": [out],
            "subset": [out, "--per-class", 4],
            "mean": ["--crop", 28, "--out", f"{out}.npy"],
        }[command]
        arguments = [PROGRAM, command, official.root, *more, "--workers", 2]
        peaks.append(int(run_program("-c", MEASURE, *map(str, arguments)).stdout))
    images = sum(map(len, sets[1].train.values()))
    assert images * BYTES > 70e6
    assert peaks[1] - peaks[0] < 8_000, peaks
