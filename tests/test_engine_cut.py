"""Saving a checkpoint, with the process ending at any of the calls."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import engine.checkpoint
from engine.checkpoint import load_checkpoint, load_latest, save_checkpoint, use_previous
from tests.test_train import same_tensors


class CutError(BaseException):
    """The end of the process: none of our code catches it."""


def cut(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """End the process instead of the `at`-th call that changes what is on the disk."""
    calls = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise CutError
            return call(*arguments, **more)

        return instead

    for name in ("fsync", "link", "replace", "unlink"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(engine.checkpoint.torch, "save", counted(torch.save))


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((1000,), float(step))}


def step_of(path: Path) -> int:
    saved = load_checkpoint(path)
    assert same_tensors(saved["weights"], state(saved["step"])["weights"])
    return saved["step"]


@pytest.mark.parametrize("damaged", [False, True])
def test_cut_at_any_call(tmp_path: Path, damaged: bool) -> None:
    """Steps 1 to 4 are saved, step 4 ends epoch 2; the save of step 5, which ends epoch 3, is cut.

    Whatever the call, there is a whole last.pt of step 4 or 5 and a whole checkpoint before it. If
    step 5 is there, so is epoch 3. The same save again leaves what an undisturbed one does.
    """
    num_cuts = 0
    for at in range(1, 100):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        for step in (1, 2, 3):
            save_checkpoint(folder / "last.pt", state(step))
        save_checkpoint(folder / "last.pt", state(4), epoch=2, keep=1)
        known = 4
        if damaged:
            (folder / "last.pt").unlink()
            (folder / "last.pt").write_bytes(b"not a checkpoint")
            known = 3
        with pytest.MonkeyPatch.context() as patched:
            cut(patched, at)
            try:
                use_previous(load_latest(folder, print)[0])
                save_checkpoint(folder / "last.pt", state(5), epoch=3, keep=1)
            except CutError:
                num_cuts += 1
        _, latest = load_latest(folder, print)
        assert latest
        assert latest["step"] in (known, 5)
        assert step_of(folder / "previous.pt") in (3, known)
        assert (folder / "epoch-003.pt").exists() or latest["step"] != 5
        use_previous(load_latest(folder, print)[0])
        save_checkpoint(folder / "last.pt", state(5), epoch=3, keep=1)
        assert step_of(folder / "last.pt") == step_of(folder / "epoch-003.pt") == 5
        assert sorted(os.listdir(folder)) == ["epoch-003.pt", "last.pt", "previous.pt"]
        if num_cuts < at:
            break
    assert num_cuts >= 8
