"""A loader's process or thread dies during training: nothing hangs, and nothing is lost."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data.sources.index import ImageIndex, scan_folder
from tests.conftest import ROOT, checkpoint, metrics, run_program
from tests.pictures import LOADERS, read, some_draws
from tests.test_train import same_tensors


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


@pytest.mark.slow
def test_a_killed_worker_process(command: list[str], runs: Path, undisturbed: Path) -> None:
    """The undisturbed run used the other loader, which shows the same images."""
    folder = runs / "worker-killed"
    arguments = [*command, "loader=torchvision", "loader.workers=2", f"name={folder.name}"]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not (folder / "checkpoints" / "last.pt").exists():
        time.sleep(0.001)
    (server,) = [pid for pid in children(process.pid) if "forkserver" in name_of(pid)]
    workers = children(server)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    killed = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode == 1
    assert stderr.startswith(b"error: a worker process of loader=torchvision died (killed by sig")
    assert stderr.count(b"\n") == 1
    while any(Path(f"/proc/{pid}").exists() for pid in [server, *workers]):
        assert time.monotonic() - killed < 60
        time.sleep(0.1)
    assert "resuming" in run_program(*arguments).stdout
    for part in ("network", "optimizer"):
        assert same_tensors(checkpoint(folder)[part], checkpoint(undisturbed)[part])
    assert metrics(folder) == metrics(undisturbed)


# train.py whose reading threads run out of memory once, in the middle of the run.
FAILING = """
import sys
import train
from data.sources.index import ImageIndex
read, count = ImageIndex.read, 0
def failing(self, i):
    global count
    count += 1
    if count == 300:
        raise MemoryError("no memory for a file")
    return read(self, i)
ImageIndex.read = failing
train.main()
"""


def test_a_dying_thread(command: list[str], runs: Path, undisturbed: Path) -> None:
    folder = runs / "thread-died"
    arguments = [*command[1:], f"name={folder.name}"]
    done = run_program("-c", FAILING, *arguments, check=False)
    assert done.returncode == 1
    assert "MemoryError: no memory for a file" in done.stderr
    assert checkpoint(folder)["progress"]["step"] >= 10
    assert "resuming" in run_program(*command, f"name={folder.name}").stdout
    assert same_tensors(checkpoint(folder)["network"], checkpoint(undisturbed)["network"])
    assert metrics(folder) == metrics(undisturbed)


class Broken(ImageIndex):
    """Reading image 7 fails as no bad file does."""

    error: type[Exception]

    def read(self, i: int) -> bytes:
        if i == 7:
            raise self.error("the reader broke")
        return super().read(i)


class BrokenRuntime(Broken):
    error = RuntimeError


class BrokenMemory(Broken):
    error = MemoryError


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("kind", [BrokenRuntime, BrokenMemory])
def test_an_unexpected_error_in_a_reader_is_raised(
    name: str, kind: type[Broken], small: Path
) -> None:
    """After the batches before it, and even if bad images are skipped."""
    whole = scan_folder(small, "train")
    index = kind(whole.classes, whole.labels, whole.folder, whole.names)
    draws = [some_draws([4 * step, 4 * step + 3], 80) for step in range(4)]
    batches = read(name, index, draws, crop=64, on_error="skip", workers=2)
    assert next(batches).indices.tolist() == [0, 3]
    with pytest.raises(kind.error, match="the reader broke"):
        next(batches)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]
    for worker in multiprocessing.active_children():
        worker.join(10)
    assert not multiprocessing.active_children()
