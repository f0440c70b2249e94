"""What train.py and eval.py refuse: with a sentence and a non-zero exit; nothing is lost."""

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import metrics, run_program


def test_a_changed_configuration_is_refused(command: list[str], undisturbed: Path) -> None:
    before = (undisturbed / "config.yaml").read_text()
    done = run_program(*command, "name=undisturbed", "act=relu", "momentum=0.8", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "act.name: prelu -> relu" in done.stderr
    assert "momentum: 0.9 -> 0.8" in done.stderr
    assert (undisturbed / "config.yaml").read_text() == before


def test_a_full_disk_keeps_the_old_checkpoint(command: list[str], runs: Path) -> None:
    run_program(*command, "name=full", "max_steps=5")
    folder = runs / "full" / "checkpoints"
    before = (folder / "last.pt").read_bytes()
    for name in ("last.pt", "best.pt"):  # every write to /dev/full fails as on a full disk
        (folder / f".{name}.tmp").symlink_to("/dev/full")
    done = run_program(*command, "name=full", "max_steps=8", check=False)
    assert done.returncode == 1
    assert "could not write" in done.stderr
    assert "last.pt (No space left on device); what was there before is kept" in done.stderr
    assert (folder / "last.pt").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_damaged_checkpoints_are_refused(
    command: list[str], runs: Path, undisturbed: Path, damage: str
) -> None:
    name = f"damaged-{damage}"
    shutil.copytree(undisturbed, runs / name)
    for file in ("last.pt", "previous.pt"):
        path = runs / name / "checkpoints" / file
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"x" * 100)
    done = run_program(*command, f"name={name}", check=False)
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
    assert len(events) == 1  # shown in both epochs, reported once
    assert str(bad) in events[0]["what"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["eval.py", "checkpoint=/nowhere/best.pt"], "there is no checkpoint at /nowhere/best.pt"),
        (["eval.py", "checkpoint={last}", "views=all"], "views=all is unknown"),
        (["eval.py", "checkpoint={last}", "scales=[32]"], "scale 32 is smaller than the views"),
        (["eval.py", "checkpoint={last}", "data.root=/nowhere"], "/nowhere"),
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


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (
            ["train.py", "model=nope"],
            1,
            "error: In 'train': Could not find 'model/nope'; Available",
        ),
        (["train.py", "epochs=0"], 1, "error: epochs=0 must be at least 1"),
        (["train.py", "data=folder", "data.root=/no"], 1, "error: no data set at /no: type data."),
        (["eval.py", "checkpoint=/no.pt"], 1, "error: there is no checkpoint at /no.pt"),
        (["scripts/describe.py", "model=C", "--processes=8", "--cost"], 0, "22 weight layers"),
        (["scripts/reproduce.py", "table4", "--dry-run"], 0, "2 runs, "),
        (["scripts/prepare_imagenet.py", "check", "/no"], 1, "error: no data set at /no: give"),
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(
    arguments: list[str], status: int, sentence: str
) -> None:
    done = run_program("-X", "importtime", *arguments, check=False)
    assert done.returncode == status
    assert sentence in done.stdout + done.stderr
    imported = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    assert "common.errors" in imported
    assert "torch" not in imported


def test_train_imports_nothing_it_may_not_need() -> None:
    """Each of these takes at least a quarter of a second."""
    program = "import sys, train; print(*sys.modules)"
    imported = set(run_program("-c", program).stdout.split())
    needless = {"torch.distributed.fsdp", "torchvision", "triton", "nvidia.dali", "matplotlib"}
    assert not needless & imported
    assert "torch._dynamo" not in imported
