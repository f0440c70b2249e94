"""Folders and files that the user may not read: the real programs end with one sentence."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.closed import refusal, skip_unbound
from tests.conftest import TINY
from tests.tars import DEVKIT, TRAIN, Official, write_official


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Official]:
    """A set of tars, in a folder that may not be entered."""
    skip_unbound()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    official = write_official(tmp_path / "official", picture=lambda seed: b"%d" % seed * 99)
    official.root.chmod(0o000)
    yield official
    official.root.chmod(0o755)


def test_a_folder_that_may_not_be_entered(closed: Official, tmp_path: Path) -> None:
    sentence = f"cannot read {closed.root} (Permission denied): it must be a folder that you may"
    program, out = "scripts/prepare_imagenet.py", tmp_path / "out"
    for command in (
        ["check", closed.root],
        ["mean", closed.root, "--out", tmp_path / "mean.npy"],
        ["extract", closed.root, out],
        ["subset", closed.root, out, "--classes", 2],
    ):
        assert sentence in refusal(program, *command)
    options = ["data=folder", f"data.root={closed.root}", f"runs={tmp_path / 'runs'}"]
    assert sentence in refusal("train.py", *TINY, *options)
    inside = closed.root / "deeper"
    assert f"cannot read {inside} (Permission denied)" in refusal(program, "check", inside)


def test_an_unwritable_mean_image_is_refused_first(closed: Official, tmp_path: Path) -> None:
    """Not after an hour of work: here, before the images turn out to be no images."""
    closed.root.chmod(0o755)
    (folder := tmp_path / "read-only").mkdir(mode=0o555)
    out = folder / "mean.npy"
    sentence = refusal("scripts/prepare_imagenet.py", "mean", closed.root, "--out", out)
    assert f"cannot write {out} (Permission denied)" in sentence


def test_files_that_may_not_be_read(closed: Official, tmp_path: Path) -> None:
    closed.root.chmod(0o755)
    (closed.root / TRAIN).chmod(0o000)
    faults = refusal("scripts/prepare_imagenet.py", "check", closed.root)
    assert f"cannot read {closed.root / TRAIN} (Permission denied)" in faults
    sentence = refusal("scripts/prepare_imagenet.py", "extract", closed.root, tmp_path / "out")
    assert f"cannot read {closed.root / TRAIN} (Permission denied)" in sentence
    (closed.root / DEVKIT).chmod(0o000)
    sentence = refusal("scripts/prepare_imagenet.py", "extract", closed.root, tmp_path / "out")
    assert f"cannot read {closed.root / DEVKIT} (Permission denied)" in sentence
