"""The real train.py and eval.py on the embedded set: what a run leaves, and how it comes back."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.log import read_metrics
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
    lines = read_metrics(undisturbed / "metrics.jsonl")
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
    ]
    assert "optimizer" not in checkpoint(undisturbed, "best.pt")
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


def reached(folder: Path, moment: str) -> bool:
    """Whether a run has come to the moment at which a test kills it."""
    if moment in ("nothing saved", "validated"):
        kind = "val" if moment == "validated" else "train"
        return any(line["kind"] == kind for line in read_metrics(folder / "metrics.jsonl"))
    return (folder / "checkpoints" / MOMENTS[moment]).exists()


MOMENTS = {"nothing saved": "", "writing": ".last.pt.tmp", "saved": "last.pt", "validated": ""}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_the_same_command_again(
    command: list[str], runs: Path, undisturbed: Path, moment: str
) -> None:
    folder = runs / f"killed-{moment.replace(' ', '-')}"
    arguments = [sys.executable, *command, f"name={folder.name}"]
    process = subprocess.Popen(arguments, cwd=ROOT, start_new_session=True)
    while process.poll() is None and not reached(folder, moment):
        time.sleep(0.001)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    out = run_program(*command, f"name={folder.name}").stdout
    if moment in ("saved", "validated"):
        assert "resuming" in out
    assert same_tensors(checkpoint(folder)["network"], checkpoint(undisturbed)["network"])
    assert same_tensors(checkpoint(folder)["optimizer"], checkpoint(undisturbed)["optimizer"])
    best = checkpoint(folder, "best.pt")["network"]
    assert same_tensors(best, checkpoint(undisturbed, "best.pt")["network"])
    assert metrics(folder) == metrics(undisturbed)
    assert curve(folder, "train/loss") == curve(undisturbed, "train/loss")  # no zig-zag
    steps = [step for step, _ in curve(folder, "gradient_norm/trunk.conv1.weight")]
    assert steps == [7, 14, 21, 25]


def test_a_finished_run_stays_as_it_is(command: list[str], undisturbed: Path) -> None:
    before = metrics(undisturbed)
    run_program(*command, "name=undisturbed", "checkpoint.keep=1")
    assert metrics(undisturbed) == before


def test_a_changed_configuration_is_refused(command: list[str], undisturbed: Path) -> None:
    before = (undisturbed / "config.yaml").read_text()
    done = run_program(*command, "name=undisturbed", "act=relu", "momentum=0.8", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "act.name: prelu -> relu" in done.stderr
    assert "momentum: 0.9 -> 0.8" in done.stderr
    assert (undisturbed / "config.yaml").read_text() == before


def test_accumulation_gives_the_same_losses(
    command: list[str], runs: Path, undisturbed: Path
) -> None:
    run_program(*command, "name=accumulated", "micro_batch=4", "max_steps=7")
    loss = metrics(runs / "accumulated")[0]["loss"]
    assert loss == pytest.approx(metrics(undisturbed)[0]["loss"], rel=1e-5)


def test_two_processes_give_the_same_losses_and_count_every_image_once(
    command: list[str], runs: Path
) -> None:
    """At a small learning rate: a large one multiplies rounding differences step by step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    rates = "schedule.rates=[1e-3,1e-4,1e-5]"
    run_program(*command, "name=one", rates)
    run_program(*launch, *command, "name=two", rates, OMP_NUM_THREADS="1")
    for two, one in zip(metrics(runs / "two"), metrics(runs / "one"), strict=True):
        assert (two["kind"], two["step"]) == (one["kind"], one["step"])
        if two["kind"] == "train":
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        else:
            assert two["images"] == 50


def test_both_loaders_train_alike(command: list[str], runs: Path, undisturbed: Path) -> None:
    run_program(*command, "name=pillow", "loader=torchvision", "max_steps=7")
    ours = metrics(undisturbed)[0]["loss"]
    assert metrics(runs / "pillow")[0]["loss"] == pytest.approx(ours, rel=0.01)


def test_not_a_number_stops_with_the_step_and_keeps_the_checkpoint(
    command: list[str], runs: Path
) -> None:
    rates = ["schedule.rule=fixed", "schedule.switch_epochs=[1]"]
    more = [*rates, "schedule.rates=[0.01,1e30]"]
    done = run_program(*command, "name=diverged", *more, check=False)
    assert done.returncode == 1
    assert "not a number" in done.stderr or "nan" in done.stderr or "inf" in done.stderr
    assert "step 14" in done.stderr or "step 15" in done.stderr
    assert "last good checkpoint" in done.stderr
    state = checkpoint(runs / "diverged")
    assert state["progress"]["step"] == 13
    assert all(tensor.isfinite().all() for tensor in state["network"].values())


def test_a_full_disk_keeps_the_old_checkpoint(command: list[str], runs: Path) -> None:
    run_program(*command, "name=full", "max_steps=5")
    folder = runs / "full" / "checkpoints"
    before = (folder / "last.pt").read_bytes()
    for name in ("last.pt", "best.pt"):  # every write to /dev/full fails as on a full disk
        (folder / f".{name}.tmp").symlink_to("/dev/full")
    done = run_program(*command, "name=full", "max_steps=8", check=False)
    assert done.returncode == 1
    assert "could not write" in done.stderr
    assert "No space left" in done.stderr
    assert (folder / "last.pt").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_a_damaged_checkpoint_is_refused(command: list[str], runs: Path, damage: str) -> None:
    name = f"damaged-{damage}"
    run_program(*command, f"name={name}", "max_steps=1", "val_subset=1")
    path = runs / name / "checkpoints" / "last.pt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"x" * 100)
    done = run_program(*command, f"name={name}", "max_steps=1", "val_subset=1", check=False)
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_another_model_is_refused(
    command: list[str], runs: Path, undisturbed: Path
) -> None:
    name = "other-model"
    more = [f"name={name}", "model=small30", "max_steps=1", "val_subset=1"]
    (runs / name / "checkpoints").mkdir(parents=True)
    os.link(undisturbed / "checkpoints" / "last.pt", runs / name / "checkpoints" / "last.pt")
    done = run_program(*command, *more, check=False)
    assert done.returncode == 1
    assert "model.name: small14 -> small30" in done.stderr


def test_bf16_trains(command: list[str], runs: Path, undisturbed: Path) -> None:
    run_program(*command, "name=bf16", "precision=bf16", "max_steps=7", "val_subset=10")
    ours = metrics(undisturbed)[0]["loss"]
    assert metrics(runs / "bf16")[0]["loss"] == pytest.approx(ours, rel=0.02)


@pytest.mark.slow
def test_compiled_step_trains_alike(command: list[str], runs: Path, undisturbed: Path) -> None:
    run_program(*command, "name=compiled", "compile=true", "max_steps=7", "val_subset=10")
    ours = metrics(undisturbed)[0]["loss"]
    assert metrics(runs / "compiled")[0]["loss"] == pytest.approx(ours, rel=1e-4)


def test_an_unreadable_image_is_named_or_replaced(
    command: list[str], small: Path, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(small, root)
    bad = sorted((root / "train").rglob("*.JPEG"))[5]
    bad.write_bytes(bad.read_bytes()[:2000])
    arguments = [*command, f"data.root={root}", f"runs={tmp_path}", "name=bad"]
    done = run_program(*arguments, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot read image {bad}")
    run_program(*arguments, "data.on_error=skip")
    events = [line for line in metrics(tmp_path / "bad") if line["kind"] == "event"]
    assert len(events) == 1  # shown in both epochs, told once
    assert str(bad) in events[0]["what"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["eval.py", "checkpoint=/nowhere/best.pt"], "there is no checkpoint at /nowhere/best.pt"),
        (["eval.py", "checkpoint={last}", "views=all"], "views=all is unknown"),
        (["eval.py", "checkpoint={last}", "scales=[32]"], "scale 32 is smaller than the views"),
        (["eval.py", "checkpoint={last}", "data.root=/nowhere"], "/nowhere"),
        (["eval.py"], "checkpoint must be given"),
        (["train.py", "data.root=/nowhere"], "/nowhere"),
        (["train.py", "model=small14", "data=synthetic", "data.crop=16", "data.scale=20"], "small"),
    ],
)
def test_bad_input_gets_one_sentence(
    undisturbed: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    last = undisturbed / "checkpoints" / "last.pt"
    more = [f"runs={tmp_path}/runs", "precision=fp32"] if arguments[0] == "train.py" else []
    done = run_program(*[a.format(last=last) for a in arguments], *more, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
