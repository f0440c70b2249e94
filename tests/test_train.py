"""The real train.py and eval.py on the embedded set: what a run leaves, and how it comes back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.files import read_json_lines
from tests.conftest import ROOT, TIMES, checkpoint, metrics, run_program


def same_tensors(a: Any, b: Any) -> bool:
    """Whether two nested states are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tensors(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_tensors, a, b))
    return a == b


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def test_a_run_leaves_what_the_contract_says(undisturbed: Path) -> None:
    lines = read_json_lines(undisturbed / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    val = [line for line in lines if line["kind"] == "val"]
    assert [line["step"] for line in train] == [7, 14, 21, 25]
    assert [(line["step"], line["epoch"], line["images"]) for line in val] == [
        (13, 0, 50),
        (25, 1, 50),
    ]
    for line in train:
        assert line.keys() >= {"epoch", "loss", "lr", *TIMES}
        assert 0 <= line["data_wait"] <= 1
    for line in val:
        wrong = line["top1_error"] * 50 / 100
        assert wrong == pytest.approx(round(wrong))  # a count, divided once
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir()) == [
        "best.pt",
        "epoch-001.pt",
        "last.pt",
        "previous.pt",
    ]
    assert "optimizer" not in checkpoint(undisturbed, "best.pt")
    norms = [line for line in lines if line["kind"] == "gradients"]
    assert [line["step"] for line in norms] == [7, 14, 21, 25]
    assert all({"conv1", "conv3_6", "fc3"} <= line["norms"].keys() for line in norms)
    assert checkpoint(undisturbed)["config"]["model"]["name"] == "small14"
    assert "rule: he" in (undisturbed / "config.yaml").read_text()


def test_tensorboard_has_curves_layers_and_a_picture(undisturbed: Path) -> None:
    board = EventAccumulator(str(undisturbed / "tensorboard"))
    board.Reload()
    scalars = set(board.Tags()["scalars"])
    assert scalars >= {"train/loss", "train/lr", "val/top1_error", "val/top5_error"}
    assert scalars >= {"train/images_per_second", "train/data_wait"}
    assert scalars >= {
        "gradient_norm/trunk.conv1.weight",
        "slope/trunk.rect3_6",
        "slope/head.rect2",
    }
    assert board.Tags()["images"] == ["augmented_batch"]


def test_killed_and_the_same_command_again(
    command: list[str], runs: Path, undisturbed: Path
) -> None:
    """Once, from a shell's view; tests/test_crash.py kills at many moments."""
    folder = runs / "killed"
    arguments = [sys.executable, *command, f"name={folder.name}"]
    process = subprocess.Popen(arguments, cwd=ROOT, start_new_session=True)
    while process.poll() is None and not (folder / "checkpoints" / "last.pt").exists():
        time.sleep(0.001)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert "resuming" in run_program(*command, f"name={folder.name}").stdout
    assert same_tensors(checkpoint(folder)["network"], checkpoint(undisturbed)["network"])
    assert same_tensors(checkpoint(folder)["optimizer"], checkpoint(undisturbed)["optimizer"])
    best = checkpoint(folder, "best.pt")["network"]
    assert same_tensors(best, checkpoint(undisturbed, "best.pt")["network"])
    assert metrics(folder) == metrics(undisturbed)
    assert curve(folder, "train/loss") == curve(undisturbed, "train/loss")  # no zig-zag
    steps = [step for step, _ in curve(folder, "gradient_norm/trunk.conv1.weight")]
    assert steps == [7, 14, 21, 25]


@pytest.mark.parametrize(
    ("number", "loader"),
    [
        (signal.SIGTERM, "dali"),
        (signal.SIGINT, "torchvision"),
        (signal.SIGUSR1, "dali"),
    ],
)
def test_told_to_stop_it_saves_and_the_same_command_goes_on(
    command: list[str], runs: Path, undisturbed: Path, number: signal.Signals, loader: str
) -> None:
    folder = runs / f"told-{number.name}"
    arguments = [*command, f"name={folder.name}", f"loader={loader}", "checkpoint.every_steps=0"]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE
    )
    while process.poll() is None and not read_json_lines(folder / "metrics.jsonl"):
        time.sleep(0.001)
    os.killpg(process.pid, number)  # the loader's processes hear it too
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75
    assert b"stopped by a signal, saved at step" in stderr
    assert 7 <= checkpoint(folder)["progress"]["step"] <= 13
    assert "resuming" in run_program(*arguments).stdout
    if loader == "dali":
        assert same_tensors(checkpoint(folder)["network"], checkpoint(undisturbed)["network"])
        assert metrics(folder) == metrics(undisturbed)


@pytest.mark.parametrize("damage", ["truncated", "bit-flipped"])
def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(
    command: list[str], runs: Path, undisturbed: Path, damage: str
) -> None:
    folder = runs / f"fallback-{damage}"
    run_program(*command, f"name={folder.name}", "max_steps=12")
    path = folder / "checkpoints" / "last.pt"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)
    out = run_program(*command, f"name={folder.name}").stdout
    assert "resuming" in out
    assert "step 12 of 25" in out  # saved before the validation too
    events = [line["what"] for line in metrics(folder) if line["kind"] == "event"]
    assert len(events) == 1
    assert "last.pt is damaged" in events[0]
    assert same_tensors(checkpoint(folder)["network"], checkpoint(undisturbed)["network"])


def test_a_finished_run_stays_as_it_is(command: list[str], undisturbed: Path) -> None:
    before = metrics(undisturbed)
    run_program(*command, "name=undisturbed", "checkpoint.keep=1")
    assert metrics(undisturbed) == before


def test_both_loaders_train_alike(command: list[str], runs: Path, undisturbed: Path) -> None:
    run_program(*command, "name=pillow", "loader=torchvision", "max_steps=7")
    ours = metrics(undisturbed)[0]["loss"]
    assert metrics(runs / "pillow")[0]["loss"] == pytest.approx(ours, rel=0.01)


def test_bf16_trains(command: list[str], runs: Path, undisturbed: Path) -> None:
    run_program(*command, "name=bf16", "precision=bf16", "max_steps=7", "val_subset=10")
    ours = metrics(undisturbed)[0]["loss"]
    assert metrics(runs / "bf16")[0]["loss"] == pytest.approx(ours, rel=0.02)


@pytest.mark.slow
def test_compiled_step_trains_alike(command: list[str], runs: Path, undisturbed: Path) -> None:
    run_program(*command, "name=compiled", "compile=true", "max_steps=7", "val_subset=10")
    ours = metrics(undisturbed)[0]["loss"]
    assert metrics(runs / "compiled")[0]["loss"] == pytest.approx(ours, rel=1e-4)
