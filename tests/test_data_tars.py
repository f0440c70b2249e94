"""The official tars: the same data set as class folders, and a scan that is kept."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from configs.schema import LoaderConfig
from data.draws import training_batches
from data.loading import load
from data.sources import imagenet
from data.sources.index import ImageIndex, class_names, scan_folder
from tests.conftest import TINY, metrics, run_program
from tests.pictures import LOADERS
from tests.tars import TEST, TRAIN, VAL, Official, age, nested, tar_of, unpack, write_official

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return write_official(tmp_path / "official")


def rewrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    age(path.parent, seconds=30.0)


def contents(index: ImageIndex) -> list[bytes]:
    return [index.read(i) for i in range(len(index))]


@pytest.mark.parametrize("split", ["train", "val"])
def test_tars_and_folders_are_the_same_data_set(
    official: Official, tmp_path: Path, split: str
) -> None:
    ours = scan_folder(official.root, split)
    folder = unpack(official, tmp_path / "folders")
    theirs = scan_folder(folder, split)
    assert ours.classes == theirs.classes == official.classes
    assert np.array_equal(ours.labels, theirs.labels)
    assert ours.labels.dtype == theirs.labels.dtype
    assert np.array_equal(ours.names, theirs.names)
    assert ours.fingerprint() == theirs.fingerprint()
    assert contents(ours) == contents(theirs)
    inside = [ours.path(i).split(":")[1] for i in range(len(ours))]
    assert inside == [os.path.relpath(theirs.path(i), folder / split) for i in range(len(ours))]
    assert class_names(official.root, split) == class_names(folder, split)


def test_labels_are_those_of_the_ground_truth(official: Official) -> None:
    assert official.wnids != official.classes  # ILSVRC2012_ID order is another one
    train, val = scan_folder(official.root, "train"), scan_folder(official.root, "val")
    assert train.classes == val.classes == official.classes
    assert len(train.classes) == 20
    assert len(train) == sum(map(len, official.train.values()))
    for i, name in enumerate(val.names.tolist()):
        assert val.classes[val.labels[i]] == official.val_wnids[name.decode()]
        assert val.read(i) == official.val[name.decode()]
    wnid = official.classes[3]
    first = int(np.searchsorted(train.labels, 3))
    name = min(official.train[wnid])
    assert train.path(first) == f"{official.root}/{TRAIN}:{wnid}/{name}"
    assert train.read(first) == official.train[wnid][name]


def test_given_classes_set_the_labels(official: Official) -> None:
    val = scan_folder(official.root, "val", classes=official.classes[::-1])
    for i, name in enumerate(val.names.tolist()):
        assert val.classes[val.labels[i]] == official.val_wnids[name.decode()]
        assert val.read(i) == official.val[name.decode()]
    with pytest.raises(UserError, match=rf"{VAL} has a class '{official.classes[-1]}' \(1 such\)"):
        scan_folder(official.root, "val", classes=official.classes[:-1])


def test_test_images_have_no_label(official: Official) -> None:
    test = scan_folder(official.root, "test")
    assert [name.decode() for name in test.names.tolist()] == list(official.test)
    assert contents(test) == list(official.test.values())
    assert set(test.labels.tolist()) == {-1}
    assert test.classes == official.classes
    assert test.path(1).endswith(f"{TEST}:ILSVRC2012_test_00000002.JPEG")
    before = test.fingerprint()
    rewrite(official.root / TEST, tar_of({"test/x.JPEG": b"x"}))
    assert scan_folder(official.root, "test").fingerprint() != before
    (official.root / TEST).rename(official.root / "ILSVRC2012_img_test.tar")  # its first name
    assert len(scan_folder(official.root, "test")) == 1


@pytest.mark.parametrize("name", LOADERS)
def test_batches_are_bit_equal(official: Official, tmp_path: Path, name: str) -> None:
    seen = []
    for root in (official.root, unpack(official, tmp_path / "folders")):
        index = scan_folder(root, "train")
        draws = training_batches(0, 0, 12, 16, len(index), (36, 64))  # more than an epoch
        config = LoaderConfig(name=name, workers=2, device="cpu")
        options = {"on_error": "stop", "on_event": pytest.fail}
        seen.append(list(load(index, draws, crop=32, loader=config, **options)))
    assert len(seen[0]) == len(seen[1]) == 12
    for ours, theirs in zip(*seen, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.indices, theirs.indices)


def test_training_and_testing_from_tars(official: Official, tmp_path: Path) -> None:
    root = f"data.root={official.root}"
    options = [*TINY, "data=folder", root, f"runs={tmp_path}", "name=tars", "max_steps=2"]
    run_program("train.py", *options, "log_every=1")
    lines = metrics(tmp_path / "tars")
    assert [line["images"] for line in lines if line["kind"] == "val"] == [40]
    last = f"checkpoint={tmp_path}/tars/checkpoints/last.pt"
    run_program("eval.py", last, "views=centre", root, f"out={tmp_path}/result.json")
    assert json.loads((tmp_path / "result.json").read_text())["images"] == 40


# The kept scan


def forbid_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_scan_train", "_scan_flat", "open_devkit"):
        monkeypatch.setattr(imagenet, name, lambda *_: pytest.fail("scanned again"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_second_scan_comes_from_the_cache(
    official: Official, cache: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    first = scan_folder(official.root, split)
    (file,) = cache.glob("*.npz")
    assert file.stat().st_size < 100 * len(first) + 4096
    forbid_scans(monkeypatch)
    second = scan_folder(official.root, split, classes=official.classes)
    assert contents(second) == contents(first)
    assert second.fingerprint() == first.fingerprint()


def test_a_changed_tar_or_devkit_is_scanned_again(official: Official) -> None:
    before = len(scan_folder(official.root, "train"))
    wnid = official.classes[0]
    official.train[wnid][f"{wnid}_new.JPEG"] = b"new"
    rewrite(official.root / TRAIN, nested(official.train))
    assert len(scan_folder(official.root, "train")) == before + 1
    same_size = nested({**official.train, wnid: {f"{wnid}_0.JPEG": b"x"}})
    size = (official.root / TRAIN).stat().st_size
    (official.root / TRAIN).write_bytes(same_size.ljust(size, b"\0"))
    assert len(scan_folder(official.root, "train")) < before + 1
    (official.root / imagenet.DEVKIT).unlink()
    with pytest.raises(UserError, match="devkit"):
        scan_folder(official.root, "train")


@pytest.mark.parametrize("damage", ["", "nonsense", "half", "older"])
def test_damaged_cache_is_scanned_again(
    official: Official, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    expected = contents(scan_folder(official.root, "train"))
    (file,) = cache.glob("*.npz")
    kept = file.read_bytes()
    if damage == "older":
        monkeypatch.setattr(imagenet, "_FORMAT", imagenet._FORMAT + 1)
    else:
        file.write_bytes(kept[: len(kept) // 2] if damage == "half" else damage.encode())
    assert contents(scan_folder(official.root, "train")) == expected
    assert (file.read_bytes() == kept) is (damage != "older")


def test_a_tar_changed_just_now_or_without_a_cache_folder(official: Official, cache: Path) -> None:
    os.utime(official.root / TRAIN)
    scan_folder(official.root, "train")
    assert not cache.exists()
    age(official.root)
    cache.parent.write_text("a file where the cache's folder should be")
    assert len(scan_folder(official.root, "train")) == sum(map(len, official.train.values()))
