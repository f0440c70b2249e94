"""Class folders as people have them: broken links, other files, modification times set back."""

import os
import shutil
import time
from pathlib import Path

import pytest

from common.errors import UserError
from data.sources import folders
from data.sources.folders import file_system
from data.sources.imagenet import scan_state
from data.sources.index import open_dataset, scan_folder
from evaluation.pictures import open_pictures
from tests.conftest import composed
from tests.tars import DEVKIT, TRAIN, nested, write_official

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes of four training and two validation images."""
    root = tmp_path / "set"
    for split, count in (("train", 4), ("val", 2)):
        for name in ("c01", "c02", "c03"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.jpg").write_bytes(b"%d" % i)
    freeze(root)
    return root


def freeze(root: Path) -> None:
    """Give all folders the same modification time, long ago."""
    for path in (*root.glob("*"), *root.glob("*/*")):
        if path.is_dir():
            os.utime(path, (10**9, 10**9))


def names(root: Path) -> list[str]:
    index = scan_folder(root, "train")
    return [os.path.relpath(index.path(i), root / "train") for i in range(len(index))]


# Broken links


def link_half(root: Path, disk: Path) -> None:
    """Every second training image becomes a link to another disk."""
    for image in sorted(root.glob("train/*/*.jpg"))[::2]:
        target = disk / image.parent.name / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(image, target)
        image.symlink_to(target)
    freeze(root)


def test_broken_links_are_refused_and_the_list_is_not_kept(
    root: Path, tmp_path: Path, cache: Path
) -> None:
    whole = names(root)
    shutil.rmtree(cache)
    link_half(root, tmp_path / "disk")
    (tmp_path / "disk").rename(tmp_path / "away")
    first = rf"train has 6 broken links.*c01/0\.jpg to {tmp_path}/disk/c01/0\.jpg"
    with pytest.raises(UserError, match=first):
        scan_folder(root, "train")
    assert not list(cache.glob("*.npz"))
    (tmp_path / "away").rename(tmp_path / "disk")
    assert names(root) == whole


@pytest.mark.parametrize("link", ["train/c02", "train", "val", "test/7.jpg", "train/c01/loop.jpg"])
def test_every_kind_of_broken_link_is_refused(root: Path, tmp_path: Path, link: str) -> None:
    (root / "test").mkdir()
    if (root / link).is_dir():
        shutil.move(root / link, tmp_path / "gone")
    (root / link).symlink_to(tmp_path / "nowhere" if "loop" not in link else root / link)
    with pytest.raises(UserError, match=rf"{link} .*: is its disk mounted\?"):
        scan_folder(root, link.partition("/")[0])


# Times


def test_a_changed_folder_with_its_time_set_back_is_listed_again(root: Path, cache: Path) -> None:
    before = names(root)
    assert list(cache.glob("*.npz"))
    (root / "train" / "c02" / "new.jpg").write_bytes(b"")
    (root / "train" / "c03" / "0.jpg").unlink()
    freeze(root)
    expected = sorted({*before, "c02/new.jpg"} - {"c03/0.jpg"})
    assert names(root) == expected


def test_folders_of_an_object_store_are_listed_each_time(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such store can be mounted here: stamps are held still, and the type is that of s3fs."""
    monkeypatch.setattr(folders, "stamp", lambda _: (4096, 0, 0))
    before = names(root)
    shutil.rmtree(root / "train" / "c03")
    shutil.copytree(root / "train" / "c02", root / "train" / "c03")
    (root / "train" / "c03" / "0.jpg").unlink()
    assert names(root) == before  # or the next lines would prove nothing
    monkeypatch.setattr(folders, "file_system", lambda _: "fuse.s3fs")
    assert names(root) == [name for name in before if name != "c03/0.jpg"]


def test_type_of_a_file_system() -> None:
    assert file_system(os.stat("/proc").st_dev) == "proc"
    assert file_system(os.makedev(4000, 4000)) == ""


@pytest.mark.parametrize("name", [TRAIN, DEVKIT])
def test_a_changed_tar_with_its_time_set_back_is_indexed_again(tmp_path: Path, name: str) -> None:
    """As rsync -t and cp -p set it, to the original's."""
    official = write_official(tmp_path / "tars", num_classes=2, picture=lambda seed: b"%05d" % seed)
    before = scan_state(official.root / TRAIN)["stamps"]
    content = (official.root / name).read_bytes()
    then = (official.root / name).stat().st_mtime_ns
    scan_folder(official.root, "train")
    time.sleep(0.02)  # the clock of file systems ticks every few milliseconds
    if name == TRAIN:
        swapped = {wnid: dict(reversed(files.items())) for wnid, files in official.train.items()}
        content = nested(swapped)
    (official.root / name).write_bytes(content)
    os.utime(official.root / name, ns=(then, then))
    after = scan_state(official.root / TRAIN)["stamps"]
    assert before[:, :2].tolist() == after[:, :2].tolist()
    assert before.tolist() != after.tolist()
    index = scan_folder(official.root, "train")
    for i, image in enumerate(index.names.tolist()):
        assert index.read(i) == official.train[index.classes[index.labels[i]]][image.decode()]


# Files that are not used, classes that are not there


def test_files_that_are_not_used_are_counted(root: Path) -> None:
    names = "c01/a.tif c01/b.TIFF c02/c.tif c02/d.Gif c03/notes.txt c03/.x.tif"
    for name in names.split():
        (root / "train" / name).write_bytes(b"")
    (root / "train" / "loose.jpg").write_bytes(b"")
    (root / "train" / "c02" / "more.jpg").mkdir()
    (root / "train" / "c02" / "more.jpg" / "deep.jpg").write_bytes(b"")
    freeze(root)
    sentence = (
        f"not used in {root}/train: .gif 1, .tif 2, .tiff 1, folders inside 1, "
        "images outside class folders 1 (images are .jpg .jpeg .png .bmp .webp)"
    )
    for _ in range(2):  # listed, then from the cache
        index = scan_folder(root, "train")
        assert len(index) == 12
        assert index.remarks() == [sentence]
    assert scan_folder(root, "val").remarks() == []


@pytest.mark.parametrize("is_there", [False, True])
def test_a_class_that_val_lacks_is_reported(root: Path, is_there: bool) -> None:
    """Whether its folder is missing or empty. eval.py: tests/test_eval.py."""
    shutil.rmtree(root / "val" / "c03")
    if is_there:
        (root / "val" / "c03").mkdir()
    dataset = open_dataset(composed("data=folder", f"data.root={root}").data, lambda: None)
    assert dataset.num_classes == 3
    assert dataset.val.labels.tolist() == [0, 0, 1, 1]
    assert dataset.remarks() == [
        f"{root}/val has no image of 1 of 3 classes, such as c03: errors are on the others"
    ]


def test_pictures_that_are_not_used_are_counted(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.tif", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (sentence,) = open_pictures([str(tmp_path), str(tmp_path / "a.jpg")], ["c01", "c02"]).remarks()
    assert sentence.startswith(f"not used in {tmp_path}: .tif 1 (images are .jpg")
