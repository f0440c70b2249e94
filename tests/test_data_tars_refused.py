"""Official tars that are refused: one sentence says what is wrong and what to do."""

import builtins
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from data.sources.devkit import read_devkit
from data.sources.imagenet import read_train_tar
from data.sources.index import scan_folder
from tests.tars import (
    DEVKIT,
    TRAIN,
    VAL,
    Official,
    meta_mat,
    nested,
    tar_of,
    unpack,
    write_devkit,
    write_official,
)

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return write_official(tmp_path / "official", picture=lambda seed: b"%d" % seed * (100 + seed))


def cut(name: str, share: float) -> Callable[[Official], Any]:
    def do(official: Official) -> None:
        size = (official.root / name).stat().st_size
        os.truncate(official.root / name, int(size * share))

    return do


def html(name: str) -> Callable[[Official], Any]:
    """The file is what a download saves when the page asks for a login."""
    return lambda official: (official.root / name).write_text("<html>Please log in</html>")


def remove(name: str) -> Callable[[Official], Any]:
    return lambda official: (official.root / name).unlink()


def folder_instead(name: str) -> Callable[[Official], Any]:
    def do(official: Official) -> None:
        (official.root / name).unlink()
        (official.root / name).mkdir()

    return do


def train_of(change: Callable[[dict[str, dict[str, bytes]]], Any]) -> Callable[[Official], Any]:
    def do(official: Official) -> None:
        change(official.train)
        (official.root / TRAIN).write_bytes(nested(official.train))

    return do


def append(name: str, member: str, data: bytes) -> Callable[[Official], Any]:
    def do(official: Official) -> None:
        with tarfile.open(official.root / name, "a") as tar:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

    return do


def renamed(name: str, other: str) -> Callable[[Official], Any]:
    def do(official: Official) -> None:
        official.val[other] = official.val.pop(name)
        (official.root / VAL).write_bytes(tar_of(official.val))

    return do


def kit(truth: list[int], meta: bytes | None = None) -> Callable[[Official], Any]:
    def do(official: Official) -> None:
        write_devkit(official.root / DEVKIT, meta or meta_mat(official.wnids), truth)

    return do


FIRST = "n01440764"
BAD: list[tuple[str, Callable[[Official], Any], str]] = [
    ("train", cut(TRAIN, 0.6), r"cut short at byte \d+, inside 'n\d+.tar'.*download it again"),
    ("train", cut(TRAIN, 0), r"cut short at byte 0: 0 of its 20 classes, 0 images, .* again$"),
    ("val", cut(VAL, 0.5), r"val.tar is cut short at byte \d+.*\d+ of its images are whole"),
    ("train", cut(DEVKIT, 0.5), r"t12.tar.gz is not a whole .tar.gz .*download it again"),
    ("train", html(DEVKIT), r"t12.tar.gz is not a whole .tar.gz \(file.*\): download it again"),
    ("train", remove(DEVKIT), r"tars but not ILSVRC2012_devkit_t12.tar.gz.*put it there"),
    ("val", remove(DEVKIT), r"tars but not ILSVRC2012_devkit_t12.tar.gz.*put it there"),
    ("val", remove(VAL), r"tars but neither ILSVRC2012_img_val.tar nor a folder val/"),
    ("train", remove(TRAIN), r"tars but neither ILSVRC2012_img_train.tar nor a folder train/"),
    ("train", folder_instead(TRAIN), r"cannot read .*train.tar \(Is a directory\)"),
    ("val", folder_instead(VAL), r"cannot read .*val.tar \(Is a directory\)"),
    ("val", folder_instead(DEVKIT), r"cannot read .*tar.gz \(Is a directory\)"),
    ("train", train_of(lambda t: t.pop(FIRST)), rf"train.tar lacks {FIRST}.tar, unlike"),
    (
        "train",
        train_of(lambda t: t.update({"n9": {"a.jpg": b""}, "n8": {"a.jpg": b""}})),
        r"train.tar has n8.tar \(and 1 more\), unlike",
    ),
    ("train", train_of(lambda t: t[FIRST].clear()), rf"has no image in {FIRST}.tar"),
    ("train", append(TRAIN, f"{FIRST}.tar", tar_of({"a.jpg": b""})), rf"holds {FIRST}.tar twice"),
    (
        "train",
        append(TRAIN, "n9.tar", tar_of({"a.jpg": b"", "b/a.jpg": b""})),
        r"holds 'a.jpg' twice, in n9.tar: 20 of its 20 classes, 79 images, are whole",
    ),
    ("train", append(TRAIN, "n9.tar", b"x" * 2048), r"damaged at byte \d+, .*, in n9.tar: 20 of"),
    ("val", append(VAL, "a/ILSVRC2012_val_00000007.JPEG", b""), r"val_00000007.JPEG' twice: 40 of"),
    ("val", append(VAL, "ILSVRC2012_val_00000041.JPEG", b""), r"holds 41 images but .* labels 40"),
    # Of which each image after it would have the label of the next.
    (
        "val",
        renamed("ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00000041.JPEG"),
        r"holds 'ILSVRC2012_val_00000041.JPEG' \(1 such\), which ILSVRC2012_devkit.* not label",
    ),
    ("val", kit([1] * 39), r"holds 40 images but ILSVRC2012_devkit_t12.tar.gz labels 39"),
    ("val", kit([1] * 39 + [21]), r"validation labels that are not in 1..20"),
    ("val", kit([0] * 40), r"validation labels that are not in 1..20"),
    ("val", kit([1] * 40, b"not a mat file" * 99), r"t12.tar.gz cannot be understood"),
    ("train", kit([1] * 40, meta_mat(["n1", "n1"])), "gives one WordNet id to two classes"),
]


@pytest.mark.parametrize(("split", "spoil", "sentence"), BAD)
def test_a_spoiled_file_is_refused(
    official: Official, split: str, spoil: Callable[[Official], Any], sentence: str
) -> None:
    spoil(official)
    with pytest.raises(UserError, match=sentence) as refusal:
        scan_folder(official.root, split)
    assert "\n" not in str(refusal.value)
    assert str(official.root) in str(refusal.value)


def test_classes_before_a_cut_are_usable(official: Official) -> None:
    path = official.root / TRAIN
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    at = members[12].offset_data + 700
    os.truncate(path, at)
    whole = [member.name[:-4] for member in members[:12]]
    images = sum(len(official.train[name]) for name in whole)
    place = f"cut short at byte {at}, inside '{members[12].name}'"
    with pytest.raises(UserError, match=f"{place}: 12 of its 20 classes, {images} images"):
        scan_folder(official.root, "train")
    tar = read_train_tar(path)
    assert list(tar.classes) == sorted(whole)
    assert tar.counts.sum() == images
    for name, listing in tar.classes.items():
        assert [n.decode() for n in listing.names] == sorted(official.train[name])


@pytest.mark.parametrize("name", [TRAIN, DEVKIT])
def test_a_file_that_may_not_be_read(
    official: Official, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = builtins.open

    def guarded(path: Any, *rest: Any, **options: Any) -> Any:
        if path == official.root / name:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(builtins, "open", guarded)
    with pytest.raises(UserError, match=rf"cannot read .*{name} \(Permission denied\)"):
        scan_folder(official.root, "train")


def test_a_folder_replaces_the_tar_of_its_split(official: Official, tmp_path: Path) -> None:
    folders = unpack(official, tmp_path / "folders")
    (folders / "val").rename(official.root / "val")
    train, val = scan_folder(official.root, "train"), scan_folder(official.root, "val")
    assert train.folder == str(official.root / TRAIN)
    assert val.folder == str(official.root / "val")
    assert train.classes == val.classes
    (official.root / VAL).write_bytes(b"not looked at")
    assert scan_folder(official.root, "val").fingerprint() == val.fingerprint()


def test_the_devkit(official: Official) -> None:
    devkit = read_devkit(official.root / DEVKIT)
    assert devkit.wnids == official.wnids  # and none of the inner nodes
    assert devkit.classes == official.classes
    assert devkit.words[official.wnids[4]] == f"{official.wnids[4]} fish, Piscis 4"
    assert sorted(devkit.words) == official.classes
    of_label = [official.wnids[number - 1] for number in devkit.ids]
    assert of_label == official.classes
    labels = [official.classes.index(wnid) for wnid in official.val_wnids.values()]
    assert devkit.val_labels.tolist() == labels
    assert [official.wnids[n - 1] for n in devkit.val_ids] == list(official.val_wnids.values())
