"""Kill a run, type the same command again, and nothing is lost (docs/reliability.md)."""

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.files import read_json_lines
from tests.conftest import checkpoint, metrics, torchrun
from tests.forks import Forks
from tests.test_train import same_tensors
from tests.test_watchdog import started

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "12"))  # kills at random times


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.close()


def assert_same(folder: Path, undisturbed: Path) -> None:
    """Everything a run leaves is equal to the last bit, except the times in the metrics."""
    ours, theirs = checkpoint(folder), checkpoint(undisturbed)
    assert ours.keys() == theirs.keys()
    for part in ours.keys() - {"config"}:
        assert same_tensors(ours[part], theirs[part]), part
    best = [checkpoint(run, "best.pt") for run in (folder, undisturbed)]
    assert same_tensors(best[0]["network"], best[1]["network"])
    assert metrics(folder) == metrics(undisturbed)


def being_written(folder: Path) -> list[str]:
    """Names of the checkpoints that are partly on the disk."""
    return [name for name in ("last.pt", "best.pt") if temporary(folder, name).exists()]


def temporary(folder: Path, name: str) -> Path:
    return folder / "checkpoints" / f".{name}.tmp"


def has_line(folder: Path, kind: str) -> bool:
    return any(line["kind"] == kind for line in read_json_lines(folder / "metrics.jsonl"))


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "starting": lambda folder: (folder / ".lock").exists(),
    "nothing-saved": lambda folder: has_line(folder, "train"),
    "writing-last": lambda folder: temporary(folder, "last.pt").exists(),
    "writing-best": lambda folder: temporary(folder, "best.pt").exists(),
    "validated": lambda folder: has_line(folder, "val"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment(
    forks: Forks,
    command: list[str],
    runs: Path,
    undisturbed: Path,
    tmp_path: Path,
    moment: str,
) -> None:
    folder = runs / f"moment-{moment}"
    arguments = [*command, f"name={folder.name}"]
    forks.start(arguments, tmp_path / "killed", slow=0.1 if "writing" in moment else 0)
    forks.until(lambda: MOMENTS[moment](folder))
    forks.signal(signal.SIGKILL)
    assert forks.wait() == -signal.SIGKILL
    out = forks.run(arguments, tmp_path / "resumed")
    assert ("resuming" in out) == (moment in ("writing-best", "validated"))
    assert_same(folder, undisturbed)


def kill(forks: Forks, folder: Path, wait: float, write: int) -> str:
    """Kill after `wait` seconds, counted from the `write`-th write of a checkpoint unless it is 0.

    Returns what the program was doing. It may have ended before.
    """
    writing = False
    while write and forks.alive():
        before, writing = writing, bool(being_written(folder))
        write -= writing and not before
        time.sleep(0.0005)
    time.sleep(wait)
    forks.signal(signal.SIGSTOP)  # so that it does nothing while we look
    writes = " and ".join(f"writing {name}" for name in being_written(folder))
    began = "step " in forks.output.read_text()
    forks.signal(signal.SIGKILL)
    return writes or ("training or validating" if began else "starting")


@pytest.mark.slow
def test_killed_at_random_times(
    forks: Forks, command: list[str], runs: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """A save every three steps; each run is killed again and again until it is complete."""
    rng, killed, num_finished = random.Random(0), Counter[str](), 0
    start = time.monotonic()
    forks.run([*command, "name=calm"], tmp_path / "calm")
    seconds = time.monotonic() - start
    while killed.total() < ROUNDS:
        folder, status = runs / f"random-{num_finished}", None
        more = [f"name={folder.name}", "checkpoint.every_steps=3", "checkpoint.keep=1"]
        while status != 0:
            forks.start([*command, *more], tmp_path / "random")
            if killed.total() < ROUNDS:
                write = rng.randrange(2) * rng.randint(1, 4)
                where = kill(forks, folder, rng.uniform(0, 0.03 if write else seconds), write)
            status = forks.wait()
            assert status in (0, -signal.SIGKILL), forks.output.read_text()
            killed.update([where] if status else [])
        assert_same(folder, undisturbed)
        assert (folder / "checkpoints" / "epoch-001.pt").exists()
        num_finished += 1
        print(json.dumps({"killed": killed, "finished": num_finished}), flush=True)


@pytest.mark.slow
def test_workers_killed_under_a_launcher_that_restarts_them(
    fifty: list[str], two: Path, runs: Path, tmp_path: Path
) -> None:
    """Each of the two processes in turn; the launcher completes the run by itself."""
    folder = runs / "restarted"
    name = f"name={folder.name}"
    arguments = ["--max-restarts=2", *fifty, "checkpoint.every_steps=3", name]
    killed: set[int] = set()
    with started(tmp_path / "log", *arguments) as job:
        for rank, step in ((1, 5), (0, 25)):
            while not any(
                line["step"] >= step for line in read_json_lines(folder / "metrics.jsonl")
            ):
                assert job.launcher.poll() is None, job.log.read_text()
                time.sleep(0.001)
            pid = job.workers()[rank]
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        assert job.launcher.wait(timeout=120) == 0, job.log.read_text()
    assert len(killed) == 2
    assert job.log.read_text().count("resuming") == 2
    assert_same(folder, two)


@pytest.mark.slow
def test_another_number_of_processes_each_time(
    forks: Forks, fifty: list[str], runs: Path, tmp_path: Path
) -> None:
    """1, 2, then 1 again; equal to 1e-4, as two processes round their sums differently."""
    forks.run([*fifty, "name=one"], tmp_path / "one")
    arguments = [*fifty, "name=one-two-one"]
    forks.run([*arguments, "max_steps=17"], tmp_path / "first")
    assert "resuming" in torchrun(2, *arguments, "max_steps=34").stdout
    assert "at step 34 of 50" in forks.run(arguments, tmp_path / "third")
    ours, theirs = checkpoint(runs / "one-two-one"), checkpoint(runs / "one")
    assert ours["progress"]["step"] == theirs["progress"]["step"] == 50
    for name, weights in theirs["network"].items():
        bound = 2e-2 if name.endswith("bias") else 1e-4  # biases are still about 1e-5
        assert (ours["network"][name] - weights).norm() <= bound * weights.norm(), name
    losses, expected = (
        [line["loss"] for line in metrics(runs / name) if line["kind"] == "train"]
        for name in ("one-two-one", "one")
    )
    assert losses == pytest.approx(expected, rel=1e-4)


def test_the_last_write_is_done_when_the_program_ends(
    forks: Forks, command: list[str], runs: Path, tmp_path: Path
) -> None:
    """On a slow disk: at the end of a run, on a signal, and when the loss becomes nan."""
    forks.run([*command, "name=slow", "max_steps=4"], tmp_path / "end", slow=1)
    progress = checkpoint(runs / "slow")["progress"]
    assert (progress["step"], progress["validated"]) == (4, 4)
    assert not being_written(runs / "slow")

    forks.start([*command, "name=slow"], tmp_path / "told", slow=1)
    forks.until(lambda: "step 7/25" in forks.output.read_text())
    forks.signal(signal.SIGTERM)
    assert forks.wait() == 75
    step = checkpoint(runs / "slow")["progress"]["step"]
    assert f"saved at step {step} of 25" in (tmp_path / "told").read_text()
    assert step < 13

    diverging = ["schedule.rule=fixed", "schedule.switch_epochs=[1]", "schedule.rates=[0.01,1e30]"]
    forks.start([*command, "name=slow-diverged", *diverging], tmp_path / "diverged", slow=1)
    assert forks.wait() == 1
    assert "the last good checkpoint is" in (tmp_path / "diverged").read_text()
    progress = checkpoint(runs / "slow-diverged")["progress"]
    assert (progress["step"], progress["validated"]) == (13, 13)


def test_told_to_stop_twice_it_ends_at_once(
    forks: Forks, command: list[str], runs: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The second signal comes during the last write, which leaves no trace."""
    folder = runs / "twice"
    arguments = [*command, f"name={folder.name}"]
    forks.start(arguments, tmp_path / "told", slow=20)
    forks.until(lambda: "step 7/25" in forks.output.read_text())
    forks.signal(signal.SIGTERM)
    forks.until(lambda: bool(being_written(folder)))
    forks.signal(signal.SIGTERM)
    assert forks.wait() == -signal.SIGTERM
    assert not (folder / "checkpoints" / "last.pt").exists()
    forks.run(arguments, tmp_path / "again")
    assert_same(folder, undisturbed)


def test_killed_while_it_goes_on_from_previous(
    forks: Forks, command: list[str], runs: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """A damaged last.pt must not replace the good checkpoint before it."""
    folder = runs / "damaged-and-killed"
    arguments = [*command, f"name={folder.name}"]
    forks.start(arguments, tmp_path / "start")
    forks.until(lambda: has_line(folder, "val"))
    forks.signal(signal.SIGKILL)
    forks.wait()
    path = folder / "checkpoints" / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()  # the file has other names
    path.write_bytes(content)
    forks.start(arguments, tmp_path / "killed", slow=0.1)
    forks.until(lambda: bool(being_written(folder)))
    forks.signal(signal.SIGKILL)
    forks.wait()
    assert "resuming" in forks.run(arguments, tmp_path / "again")
    for part in ("network", "optimizer", "progress"):
        assert same_tensors(checkpoint(folder)[part], checkpoint(undisturbed)[part])
    events = [line for line in metrics(folder) if line["kind"] == "event"]
    assert [line for line in metrics(folder) if line not in events] == metrics(undisturbed)
    assert len(events) == 1
    assert "last.pt is damaged" in events[0]["what"]
