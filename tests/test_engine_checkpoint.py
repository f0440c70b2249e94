"""Checkpoints that are written while training goes on."""

import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import Stopped, UserError
from engine.checkpoint import BackgroundWriter, load_checkpoint
from engine.distributed import World
from engine.run_folder import open_run
from engine.trainer import Trainer
from tests.conftest import SHORT, composed, run_program
from tests.test_train import same_tensors
from train import build

GIGABYTES = 75e6 * 2 * 4 / 1e9  # small14's weights and their momentum, 4 bytes each


def train(
    small: Path, folder: Path, *more: str, write: Callable[[Trainer, str, int], None]
) -> Trainer:
    """A run of 25 steps in this process.

    Before each write, `write` is called in its thread with the checkpoint's name and step.
    """
    data = ["data=folder", f"data.root={small}", f"name={folder.name}", f"runs={folder.parent}"]
    config = composed(*SHORT, *data, *more)
    world = World(0, 1, torch.device("cpu"))
    trainer = build(config, world)
    real = trainer.write

    def observed(name: str, ends: int | None, state: dict[str, Any]) -> None:
        write(trainer, name, state["progress"]["step"])
        real(name, ends, state)
        number = len(list(folder.glob("seen-*")))
        os.link(folder / "checkpoints" / name, folder / f"seen-{number:02d}-{name}")

    trainer.write = observed  # type: ignore[method-assign]
    with open_run(folder, trainer.settings, world):
        trainer.fit()
    return trainer


def seen(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """All checkpoints that a run has written, in order, without the run's configuration."""
    checkpoints = []
    for path in sorted(folder.glob("seen-*")):
        state = load_checkpoint(path)
        del state["config"]
        checkpoints.append((path.name, state))
    return checkpoints


def test_a_checkpoint_is_of_its_step_though_training_has_gone_on(
    small: Path, tmp_path: Path
) -> None:
    """Compared with the same run with a loop that waits for each write."""
    ahead: list[int] = []

    def slowly(trainer: Trainer, name: str, step: int) -> None:
        """Within an epoch, delay the write until two more steps are done."""
        end = time.monotonic() + 20
        while step in (3, 6, 9, 18) and trainer.progress.step < step + 2:
            assert time.monotonic() < end, "training waits for the write"
            time.sleep(0.001)
        ahead.append(trainer.progress.step - step)

    more = ["checkpoint.every_steps=3", "checkpoint.keep=1"]
    train(small, tmp_path / "beside", *more, write=slowly)
    threads: set[int] = set()
    more.append("checkpoint.asynchronous=false")
    train(small, tmp_path / "sync", *more, write=lambda *_: threads.add(threading.get_ident()))
    assert threads == {threading.get_ident()}
    assert sum(steps >= 2 for steps in ahead) == 4
    ours, expected = seen(tmp_path / "beside"), seen(tmp_path / "sync")
    assert len(ours) >= 12
    assert [name for name, _ in ours] == [name for name, _ in expected]
    for (name, state), (_, other) in zip(ours, expected, strict=True):
        assert state.keys() == other.keys()
        for part in state:
            assert same_tensors(state[part], other[part]), (name, part)
    files = [sorted(os.listdir(tmp_path / run / "checkpoints")) for run in ("beside", "sync")]
    assert files[0] == files[1] == ["best.pt", "epoch-001.pt", "last.pt", "previous.pt"]


def test_a_failed_write_ends_the_run_at_the_next_metrics_line(small: Path, tmp_path: Path) -> None:
    """With the write's own sentence, though nothing is to be saved at that time."""
    steps: list[int] = []

    def full(trainer: Trainer, name: str, step: int) -> None:
        steps.append(trainer.progress.step)
        raise UserError(f"could not write {name} (No space left on device)")

    more = ["checkpoint.every_steps=5", "log_every=1", "epochs=4"]
    with pytest.raises(UserError, match=r"could not write last.pt \(No space") as error:
        train(small, tmp_path / "full", *more, write=full)
    assert not isinstance(error.value, Stopped)
    assert len(steps) == 1
    lines = (tmp_path / "full" / "metrics.jsonl").read_text().count('"kind": "train"')
    assert lines < 10


def test_each_save_waits_for_the_one_before() -> None:
    """There is one copy in memory; states are written as they were given, and in that order."""
    go, weights = threading.Event(), torch.zeros(3)
    written: list[list[float]] = []

    def write(state: dict[str, Any]) -> None:
        go.wait(10)
        written.append(state["w"][0].tolist())

    with BackgroundWriter() as writer:
        writer.save({"w": [weights]}, write)
        weights += 1
        saving = threading.Thread(target=partial(writer.save, {"w": [weights]}, write))
        saving.start()
        saving.join(0.2)
        assert saving.is_alive()
        assert written == []
        go.set()
        saving.join()
        weights += 1
    assert written == [[0, 0, 0], [1, 1, 1]]


def test_the_copy_keeps_layouts_and_its_memory() -> None:
    image = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    states: list[dict[str, Any]] = []
    with BackgroundWriter() as writer:
        for _ in range(2):
            writer.save({"a": {0: image, 1: "text"}, "b": [image.half(), 2.5]}, states.append)
    first, second = states
    assert second["a"][0].stride() == image.stride()
    assert torch.equal(second["a"][0], image)
    assert second["b"][0].dtype == torch.float16
    assert (second["a"][1], second["b"][1]) == ("text", 2.5)
    assert first["a"][0].data_ptr() == second["a"][0].data_ptr() != image.data_ptr()


def leave(how: str, error: UserError | None = None) -> None:
    """Leave a writer whose write fails in one of several ways."""

    def fail(state: dict[str, Any]) -> None:
        raise UserError("the disk is full")

    with BackgroundWriter() as writer:
        writer.save({}, fail)
        if how == "save":
            writer.save({}, fail)
        while how == "check":
            writer.check()
        if error:
            raise error


@pytest.mark.parametrize("how", ["save", "check", "at the end"])
def test_a_failed_write_is_told_however_a_run_ends(how: str) -> None:
    with pytest.raises(UserError, match=r"^the disk is full$"):
        leave(how)
    with pytest.raises(UserError, match=r"^the loss became nan; the disk is full$"):
        leave("", UserError("the loss became nan"))


def test_the_benchmark_measures_both_ways(tmp_path: Path) -> None:
    few = ["--model=small14", "--steps=1", "--rounds=1", f"--folder={tmp_path}"]
    printed = run_program("scripts/benchmark.py", "checkpoint", "--json", *few).stdout
    rows = json.loads(printed)["rows"]
    assert [row["path"] for row in rows] == ["sync", "async"]
    for row in rows:
        assert row["model"] == "small14"
        assert row["gigabytes"] == pytest.approx(GIGABYTES, rel=0.01)
        assert row["seconds_held"] > 0
        assert isinstance(row["seconds_lost"], float)
    sync, background = rows
    assert sync["seconds_held"] == pytest.approx(sync["seconds_to_disk"], rel=0.1)
    assert background["seconds_held"] < background["seconds_to_disk"]
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_copy_from_a_gpu_is_of_its_time() -> None:
    """The weights change right after each save, while the GPU is still computing them."""
    weights = torch.zeros(64, 1024, 1024, device="cuda")
    matrix = torch.randn(4096, 4096, device="cuda")
    copies: list[Tensor] = []
    with BackgroundWriter() as writer:
        for number in range(4):
            for _ in range(20):
                matrix = (matrix @ matrix).clamp(-1, 1)
            weights.fill_(number)
            writer.save({"w": weights}, lambda state: copies.append(state["w"].clone()))
            weights.fill_(-1)
    assert [tensor.unique().tolist() for tensor in copies] == [[0], [1], [2], [3]]
    assert all(not tensor.is_cuda for tensor in copies)
