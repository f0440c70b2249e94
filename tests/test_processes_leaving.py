"""Processes that leave: together, with everything saved, and none while another needs it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT, checkpoint, free_port, metrics, run_program, torchrun
from tests.test_train import same_tensors


@contextmanager
def pair(*arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes, as srun starts them: neither is ended when the other is."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env = {**os.environ, **shared, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**env, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_one_process_is_told_to_stop_and_both_do(fifty: list[str], runs: Path, two: Path) -> None:
    """At the same saved step, both with status 75; the same command continues from there."""
    folder = runs / "told-one"
    arguments = [*fifty, f"name={folder.name}", "checkpoint.every_steps=0"]
    with pair(*arguments) as processes:
        while len(metrics(folder)) < 3:
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.001)
        processes[1].send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [75, 75], errors
    step = checkpoint(folder)["progress"]["step"]
    assert step in (10, 20)
    for error in errors:  # where process 0 has left with the store, torch says so
        assert f"stopped by a signal, saved at step {step} of 50\n" in error
        assert "FutureWarning" not in error
    torchrun(2, *arguments)
    assert same_tensors(checkpoint(folder)["network"], checkpoint(two)["network"])
    assert metrics(folder) == metrics(two)


SLOW_DISK = """
import time, torch, train
save = torch.save
def slowly(*arguments):
    time.sleep(4)
    save(*arguments)
torch.save = slowly
train.main()
"""


def test_no_process_ends_before_the_last_write(fifty: list[str], runs: Path) -> None:
    """Once the first process has left, a launcher may end the others."""
    arguments = [*fifty[1:], "name=slow-pair", "max_steps=2", "val_subset=4"]
    with pair("-c", SLOW_DISK, *arguments) as processes:
        assert processes[1].wait(timeout=300) == 0
        progress = checkpoint(runs / "slow-pair")["progress"]
        assert (progress["step"], progress["validated"]) == (2, 2)
        assert processes[0].wait(timeout=60) == 0


def test_an_evaluation_told_to_stop_keeps_what_it_has(two: Path, tmp_path: Path) -> None:
    """There is one shard: one process scores it, the other waits; both get the signal."""
    best, out = two / "checkpoints" / "best.pt", tmp_path / "result.json"
    arguments = ["eval.py", f"checkpoint={best}", "views=dense", "batch_size=1"]
    scales = "scales=[72,224]"
    with pair(*arguments, scales, f"out={out}") as processes:
        while not list(tmp_path.glob("result.parts/*/part-00000.npy")):
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.001)
        for process in processes:
            process.send_signal(signal.SIGUSR1)
        errors = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [75, 75], errors
    assert all("stopped by a signal at scale " in error for error in errors)
    assert not out.exists()
    run_program(*arguments, scales, f"out={out}")
    run_program(*arguments, scales, f"out={tmp_path}/undisturbed.json")
    kept, fresh = (json.loads(path.read_text()) for path in (out, tmp_path / "undisturbed.json"))
    assert kept["images"] == 50
    assert kept["scales"] == fresh["scales"]
    assert kept["combined"] == fresh["combined"]


# eval.py, in which process 1 is slow to read what all have computed.
SLOW_READER = """
import os, time
import eval
from evaluation.score_shards import ScoreShards
read = ScoreShards.read
def slowly(self):
    time.sleep(3 * int(os.environ["RANK"]))
    return read(self)
ScoreShards.read = slowly
eval.main()
"""


def test_parts_stay_until_all_processes_have_read_them(two: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW_READER)
    best, out = two / "checkpoints" / "best.pt", tmp_path / "result.json"
    torchrun(2, str(tmp_path / "slow.py"), f"checkpoint={best}", f"out={out}")
    assert json.loads(out.read_text())["images"] == 50
    assert not out.with_suffix(".parts").exists()
