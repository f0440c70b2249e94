"""Processes that hang or die: the job ends in time and names them; the same command resumes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data.draws import epoch_order
from data.sources.index import scan_folder
from engine.distributed import open_world
from engine.watchdog import Seen, Sign, hanging
from tests.conftest import ROOT, checkpoint, free_port, metrics, torchrun
from tests.test_train import same_tensors

TIMEOUT = 20


def seen(*rows: tuple[int, int, int, int]) -> list[Seen]:
    """Processes as (seconds of silence, seconds without a move, met, moved); now is 100."""
    return [
        Seen(100 - silent, 100 - still, Sign(f"host h{rank}, pid 1", 5, met, moved, f"step {met}"))
        for rank, (silent, still, met, moved) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([(1, 1, 7, 0), (1, 1, 7, 0)], None),  # all is well
        ([(1, 19, 7, 0), (1, 19, 6, 0)], None),  # not yet
        ([(1, 900, 7, 0), (1, 1, 6, 80)], None),  # one waits for the other, which works
        ([(1, 21, 7, 0), (1, 25, 6, 0)], "1 of 2"),  # one waits for the other, which hangs
        ([(1, 25, 6, 3), (1, 25, 6, 4), (1, 25, 6, 3)], "0, 2 of 3"),
        ([(1, 1, 6, 9), (1, 25, 6, 4)], "1 of 2"),  # one still works on its own part
        ([(1, 25, 6, 0), (1, 25, 6, 0)], "0, 1 of 2"),  # each waits for the others
        ([(1, 21, 7, 0), (21, 21, 7, 0)], "1 of 2"),  # one is stopped
        ([(1, 21, 6, 0), (19, 19, 7, 0)], "1 of 2"),
        ([(21, 21, 7, 0), (1, 1, 7, 2)], "0 of 2"),
    ],
)
def test_who_holds_up_the_job(rows: list[tuple[int, int, int, int]], named: str | None) -> None:
    sentence = hanging(seen(*rows), now=100, timeout=20)
    assert bool(sentence) == (named is not None)
    if named:
        assert sentence.startswith(("process ", "processes "))
        assert sentence.split(" ", 1)[1].startswith(f"{named} (host h")


def test_a_process_that_has_ended_is_not_missed() -> None:
    ended = seen((1, 1, 7, 3), (900, 900, 7, 0))
    ended[1].sign = Sign(met=7, left=True)
    assert not hanging(ended, now=100, timeout=20)
    early = seen((1, 25, 7, 0), (900, 900, 6, 0))
    early[1].sign = Sign(met=6, left=True)
    assert "process 1 of 2" in hanging(early, now=100, timeout=20)


# One of two processes under a watchdog, without training: rank, port, and what happens to a rank.
PAIR = """
import datetime, os, signal, sys, time
import torch.distributed as dist
from engine.watchdog import Watchdog
rank, port, act = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
store = dist.TCPStore("127.0.0.1", port, 2, rank == 0)
watch = Watchdog(store, rank, 2, 2)
print("watched", flush=True)
for step in range(200):
    watch.meet(f"step {step}")
    time.sleep(0.03)
    if step == 30 and act == f"stop {rank}":
        os.kill(os.getpid(), signal.SIGSTOP)
    if step == 30 and act == f"die {rank}":
        os.kill(os.getpid(), signal.SIGKILL)
watch.close()
print("ended", flush=True)
"""


def pair(act: str) -> list[subprocess.Popen[str]]:
    port, pipe = str(free_port()), subprocess.PIPE
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PAIR, str(rank), port, act],
            **{"cwd": ROOT, "stdout": pipe, "stderr": pipe, "text": True},
        )
        for rank in (0, 1)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "watched\n"
    return processes


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        ("die 1", "process 1 of 2 (host"),
        ("stop 0", "process 0, through which the processes find each other"),
        ("die 0", "process 0, through which the processes find each other"),
    ],
)
def test_a_process_that_no_longer_answers_is_named(act: str, sentence: str) -> None:
    """Even if no launcher ends the others, and if it is the process that has the store."""
    processes = pair(act)
    hung = int(act[-1])
    try:
        out, error = processes[1 - hung].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[1 - hung].returncode == 1
    assert "ended" not in out
    line = next(line for line in error.splitlines() if line.startswith("error: "))
    assert sentence in line
    assert re.search(r"has not answered for [2-9] s", line)  # 2, or more on a busy machine


def test_a_timeout_that_ends_sound_jobs_is_refused() -> None:
    with pytest.raises(UserError, match="timeout=5 is too short"), open_world("cpu", 5):
        pass


def test_a_job_that_was_suspended_goes_on() -> None:
    processes = pair("nothing")
    time.sleep(1)
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    for process in processes:
        process.send_signal(signal.SIGCONT)
    for process in processes:
        out, error = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "ended\n"), error


@dataclass
class Job:
    """A launcher with two training processes."""

    launcher: subprocess.Popen[bytes]
    log: Path

    def workers(self) -> dict[int, int]:
        """Rank -> process id."""
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        pids = {}
        for pid in children.read_text().split():
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(b"RANK="):
                    pids[int(entry[5:])] = int(pid)
        return pids

    def wait_for(self, path: Path) -> None:
        while self.launcher.poll() is None and not path.exists():
            time.sleep(0.001)
        assert self.launcher.poll() is None, self.log.read_text()

    def sentences(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith("error: ")]


@contextmanager
def started(log: Path, *arguments: str) -> Iterator[Job]:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(log, "wb") as file:
        launcher = subprocess.Popen(
            [sys.executable, *launch, *arguments], cwd=ROOT, env=env, stdout=file, stderr=file
        )
    try:
        yield Job(launcher, log)
    finally:
        launcher.terminate()
        launcher.wait(timeout=90)


@pytest.mark.slow
def test_a_stopped_process_ends_the_job(fifty: list[str], runs: Path, tmp_path: Path) -> None:
    more = ["name=stopped", "max_steps=40", f"timeout={TIMEOUT}"]
    with started(tmp_path / "log", *fifty, *more) as job:
        job.wait_for(runs / "stopped" / "checkpoints" / "last.pt")
        workers = job.workers()
        os.kill(workers[1], signal.SIGSTOP)
        stopped = time.monotonic()
        while not job.sentences() and time.monotonic() < stopped + 2 * TIMEOUT:
            time.sleep(0.1)
        seconds = time.monotonic() - stopped
        assert job.launcher.wait(timeout=90) != 0  # torchrun waits 30 s before it sends SIGKILL
    (sentence,) = job.sentences()
    assert f"process 1 of 2 (host {os.uname().nodename}, pid {workers[1]}, last at s" in sentence
    assert seconds < 1.5 * TIMEOUT
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers.values())


@pytest.mark.slow
def test_a_stuck_process_ends_the_job_and_the_same_command_resumes(
    fifty: list[str], two: Path, small: Path, runs: Path, tmp_path: Path
) -> None:
    """Its storage does not answer: an image that only it reads is replaced by a pipe."""
    root = tmp_path / "data"
    shutil.copytree(small, root)
    index = scan_folder(root, "train")
    # A row of process 1 in the batches of steps 20 to 24, not shown in those of steps 5 to 19.
    order = np.concatenate([epoch_order(0, epoch, 200) for epoch in range(4)])
    rows = [row for row in range(19 * 16, 24 * 16) if row % 16 >= 8]
    row = next(row for row in rows if order[row] not in order[5 * 16 : 19 * 16])
    bad = Path(index.path(order[row]))
    more = ["name=stuck", f"data.root={root}", f"timeout={TIMEOUT}", "checkpoint.every_steps=5"]
    with started(tmp_path / "log", *fifty, *more) as job:
        job.wait_for(runs / "stuck" / "checkpoints" / "last.pt")
        workers = job.workers()
        bad.rename(tmp_path / "kept")
        os.mkfifo(bad)
        status = job.launcher.wait(timeout=120)
    assert status != 0
    (sentence,) = job.sentences()
    assert f"process 1 of 2 (host {os.uname().nodename}, pid {workers[1]}" in sentence
    places = [f"last at step {row // 16 - ahead})" for ahead in (0, 1, 2)]  # loader.prefetch=2
    assert any(place in sentence for place in places)
    assert "has made no progress for" in sentence
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers.values())
    bad.unlink()
    (tmp_path / "kept").rename(bad)
    assert "resuming" in torchrun(2, *fifty, *more, "timeout=99").stdout
    assert same_tensors(checkpoint(runs / "stuck")["network"], checkpoint(two)["network"])
    assert same_tensors(checkpoint(runs / "stuck")["optimizer"], checkpoint(two)["optimizer"])
    assert metrics(runs / "stuck") == metrics(two)


def test_a_killed_process_ends_the_job_at_once(
    fifty: list[str], runs: Path, tmp_path: Path
) -> None:
    with started(tmp_path / "log", *fifty, "name=killed-one") as job:
        job.wait_for(runs / "killed-one" / "checkpoints" / "last.pt")
        os.kill(job.workers()[1], signal.SIGKILL)
        assert job.launcher.wait(timeout=45) != 0
