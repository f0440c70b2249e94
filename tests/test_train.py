"""The real train.py and eval.py on the embedded set: what a run leaves, and how it resumes."""

import os
import re
import shlex
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
from configs.schema import EvalConfig
from configs.store import as_typed
from tests.conftest import ROOT, TIMES, checkpoint, composed, metrics, run_program
from train import evaluation_command


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
    assert {"slopes/conv1", "slopes/fc2"} <= set(board.Tags()["histograms"])
    assert set(board.Tags()["images"]) == {"augmented_batch", "conv1_filters"}
    assert [image.step for image in board.Images("conv1_filters")] == [13, 25]


def test_slopes_of_each_validation_are_those_of_the_network(undisturbed: Path) -> None:
    lines = [line for line in metrics(undisturbed) if line["kind"] == "slopes"]
    assert [line["step"] for line in lines] == [13, 25]
    slopes = checkpoint(undisturbed)["network"]["trunk.rect3_6.slopes"].double()
    logged = lines[-1]["layers"]["conv3_6"]
    assert logged["mean"] == pytest.approx(slopes.mean().item())
    assert logged["quantiles"][3] == pytest.approx(slopes.median().item(), abs=1e-4)
    assert [logged["quantiles"][0], logged["quantiles"][-1]] == pytest.approx(
        [slopes.min().item(), slopes.max().item()], abs=1e-5
    )


def test_killed_and_the_same_command_again(
    command: list[str], runs: Path, undisturbed: Path
) -> None:
    """Once, as from a shell; tests/test_crash.py kills at many moments."""
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
    while process.poll() is None and not metrics(folder):
        time.sleep(0.001)
    os.killpg(process.pid, number)  # the loader's processes get it too
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
    out = run_program(*command, "name=undisturbed", "checkpoint.keep=1").stdout
    assert metrics(undisturbed) == before
    assert "nothing is left to train" in out
    errors = [line["top1_error"] for line in before if line["kind"] == "val"]
    assert f"25 steps are done: top-1 error {errors[-1]:.2f} %" in out
    assert f"top-1 error {min(errors):.2f} % at step" in out
    command_words = shlex.split(out.partition("to test it")[2])
    assert command_words[:2] == ["python", "eval.py"]
    test = composed(*command_words[2:], program="eval")
    assert test.views == "dense"
    assert Path(test.checkpoint) == undisturbed / "checkpoints" / "last.pt"


def test_the_command_of_the_test_survives_a_shell_and_hydra(tmp_path: Path) -> None:
    name = 'it\'s [a] "b", c=1'
    config = composed("model=small14", f"runs={tmp_path}", "loader=torchvision")
    config.name = name
    words = shlex.split(evaluation_command(config))
    test = composed(*as_typed(words[2:], EvalConfig), program="eval")
    assert test.checkpoint == str(tmp_path / name / "checkpoints" / "last.pt")
    assert test.loader.name == "torchvision"


def test_both_loaders_train_alike(command: list[str], runs: Path, undisturbed: Path) -> None:
    out = run_program(*command, "name=pillow", "loader=torchvision", "max_steps=7").stdout
    assert re.search(r"^step 7/7 .* ETA \d+ s$", out, re.MULTILINE)  # of the validation to come
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
