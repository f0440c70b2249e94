"""prepare_imagenet.py check: an intact set passes, and every fault is named."""

import hashlib
import io
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from data.prepare.release import ILSVRC2012, Release
from tests.preparing import checked, refused, release_of, tree, wrong
from tests.tars import DEVKIT, TEST, TRAIN, VAL, Official, nested, tar_of, unpack, write_official

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return write_official(tmp_path / "official", picture=lambda seed: b"%d" % seed * (100 + seed))


@pytest.fixture
def release(official: Official) -> Release:
    return release_of(official)


def test_an_intact_set(official: Official, release: Release) -> None:
    before = tree(official.root)
    done = checked(official.root, release)
    assert done.faults == []
    md5 = hashlib.md5(before[TRAIN]).hexdigest()
    assert f"{TRAIN}: MD5 {md5}, as it should be" in done.told
    assert done.told.count("as it should be") == 4
    assert f"{TRAIN}: 79 images of 20 classes, 3 to 5 a class" in done.told
    assert f"{VAL}: 40 images of 20 classes, 2 a class" in done.told
    assert f"{TEST}: 5 images\n" in done.told
    assert tree(official.root) == before
    assert "MD5" not in checked(official.root, release, md5=False).told


def test_another_data_set_is_refused(official: Official) -> None:
    done = refused("check", official.root)
    faults = wrong(done)
    for name in (TRAIN, VAL, TEST, DEVKIT):
        md5 = hashlib.md5((official.root / name).read_bytes()).hexdigest()
        known = ILSVRC2012.md5[name]
        assert f"{name} has the MD5 {md5} instead of {known}: download it again" in faults
    assert f"{TRAIN} has 79 images, not 1,281,167" in faults
    assert f"{VAL} has 40 images, not 50,000" in faults
    assert f"{TEST} has 5 images, not 100,000" in faults
    assert f"{len(faults)} things are wrong with {official.root}" in done.stderr


def test_every_fault_is_named(official: Official, release: Release) -> None:
    size = (official.root / TRAIN).stat().st_size
    os.truncate(official.root / TRAIN, size // 2)
    val = dict(list(official.val.items())[:-1])
    (official.root / VAL).write_bytes(tar_of(val | {"ILSVRC2012_val_00000041.JPEG": b"x"}))
    (official.root / TEST).unlink()
    done = checked(official.root, release)
    last = list(official.val_wnids.values())[-1]
    for start in (
        f"{TRAIN} has the MD5 ",
        f"{VAL} has the MD5 ",
        f"{TRAIN} is cut short at byte {size // 2}, inside '",
        f"{TRAIN} lacks the classes n",
        f"{VAL} holds 'ILSVRC2012_val_00000041.JPEG' (1 such), which {DEVKIT} does not label",
        f"{VAL} has another number of images of {last} (1, not 2)",
    ):
        assert [line for line in done.faults if line.startswith(start)], start
    assert "only a submission needs it" in done.told


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (DEVKIT, rf"{DEVKIT} is missing: .* download it too, and put it there"),
        (TRAIN, f"has neither {TRAIN} nor a folder train/: download it"),
        (VAL, f"has neither {VAL} nor a folder val/: download it"),
    ],
)
def test_a_missing_file(official: Official, release: Release, missing: str, sentence: str) -> None:
    (official.root / missing).unlink()
    (fault,) = checked(official.root, release).faults
    assert re.search(sentence, fault)


def test_files_that_cannot_be_read(official: Official, release: Release) -> None:
    for name in (TRAIN, VAL, DEVKIT):
        (official.root / name).unlink()
    (official.root / TRAIN).mkdir()
    (official.root / VAL).symlink_to("nowhere")
    (official.root / DEVKIT).write_bytes(b"no tar at all")
    faults = checked(official.root, release, md5=False).faults
    assert f"{TRAIN} cannot be used: cannot read {official.root}/{TRAIN} (Is a dir" in faults[1]
    assert f"{VAL} cannot be used: cannot read {official.root}/{VAL} (No such file" in faults[2]
    assert f"{DEVKIT} cannot be used: {official.root}/{DEVKIT} is not a whole" in faults[0]


def test_duplicate_names_and_numbers_of_images(official: Official, release: Release) -> None:
    first, second, third = official.classes[:3]
    official.train[first].popitem()
    official.train[second]["new.jpg"] = b""
    (official.root / TRAIN).write_bytes(nested(official.train | {"n9": {"a.jpg": b""}}))
    with tarfile.open(official.root / TRAIN, "a") as tar:
        duplicates = tar_of({"a.jpg": b"", "b/a.jpg": b""})
        member = tarfile.TarInfo(f"{third}.tar")
        member.size = len(duplicates)
        tar.addfile(member, io.BytesIO(duplicates))
    faults = checked(official.root, release, md5=False).faults
    assert f"{TRAIN} holds {third}.tar twice" in faults
    assert f"{TRAIN} holds 'a.jpg' twice, in {third}.tar" in faults
    assert f"{TRAIN} has classes unknown to {DEVKIT}: n9" in faults
    (numbers,) = [line for line in faults if "another number" in line]
    assert f"{first} (2, not 3), {second} (5, not 4)" in numbers


def test_folders(official: Official, release: Release, tmp_path: Path) -> None:
    folder = unpack(official, tmp_path / "folder")
    done = checked(folder, release)
    assert done.faults == []
    assert "train: 79 images of 20 classes, 3 to 5 a class" in done.told
    shutil.copy(official.root / DEVKIT, folder)
    assert checked(folder, release).faults == []
    name, wnid = next(iter(official.val_wnids.items()))
    other = next(name for name in official.classes if name != wnid)
    (folder / "val" / wnid / name).rename(folder / "val" / other / name)
    shutil.rmtree(folder / "train" / wnid)
    (folder / "test").mkdir()
    faults = checked(folder, release).faults
    assert f"val has images in the folder of another class: {other}/{name}" in faults
    assert f"train lacks the classes {wnid}" in faults
    assert f"test cannot be used: {folder}/test has no image (.jpg .jpeg" in "\n".join(faults)
    (folder / DEVKIT).unlink()
    faults = checked(folder, release).faults
    assert "train has 19 classes, not 20" in faults
    (numbers,) = [line for line in faults if line.startswith("val has another number")]
    assert f"{wnid} (1, not 2)" in numbers
    assert f"{other} (3, not 2)" in numbers


def test_no_data_set(tmp_path: Path) -> None:
    assert "no data set at" in refused("check", tmp_path / "nowhere").stderr
    (tmp_path / "empty").mkdir()
    assert "holds neither ILSVRC2012_img_train" in refused("check", tmp_path / "empty").stderr


def test_the_known_facts_of_imagenet() -> None:
    """PAPER: 1 PNG, 22 CMYK."""
    assert sorted(map(len, ILSVRC2012.odd_images.values())) == [1, 1, 22]
    assert all(len(set(names)) == len(names) for names in ILSVRC2012.odd_images.values())
    assert {len(md5) for md5 in ILSVRC2012.md5.values()} == {32}
