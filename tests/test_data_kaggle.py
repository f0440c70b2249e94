"""ImageNet as Kaggle gives it, and a flat val/: the same data set as the tars and class folders."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import UserError
from configs.schema import LoaderConfig
from data.draws import centre_batches, training_batches
from data.loading import Batch, load
from data.sources.imagenet import open_devkit
from data.sources.index import ImageIndex, class_names, scan_folder
from evaluation.submission import open_test_images, submission_ids
from tests.conftest import TINY, metrics, run_program
from tests.tars import DEVKIT, TEST, VAL, Official, extract, unpack, write_official

CLS_LOC, SOLUTION, WORDS = "ILSVRC/Data/CLS-LOC", "LOC_val_solution.csv", "LOC_synset_mapping.txt"


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Official:
    return write_official(tmp_path_factory.mktemp("data") / "official")


def flatten_val(official: Official, folder: Path) -> None:
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()
    extract(official.root / VAL, folder / "val")


def as_folders(official: Official, root: Path) -> Path:
    unpack(official, root)
    extract(official.root / TEST, root)
    return root


def as_kaggle(official: Official, root: Path) -> Path:
    """Lines of the solution are in no order, and end with a space."""
    as_folders(official, root / CLS_LOC)
    flatten_val(official, root / CLS_LOC)
    rows = [f"{Path(n).stem},{wnid} 1 2 30 40 5 6 7 8 \n" for n, wnid in official.val_wnids.items()]
    random.Random(0).shuffle(rows)
    (root / SOLUTION).write_text("ImageId,PredictionString\n" + "".join(rows))
    words = [f"{wnid} {wnid} fish, Piscis {k}\n" for k, wnid in enumerate(official.wnids)]
    (root / WORDS).write_text("".join(sorted(words)))
    return root


def flat_beside_devkit(official: Official, root: Path) -> Path:
    as_folders(official, root)
    flatten_val(official, root)
    shutil.copy(official.root / DEVKIT, root)
    return root


def flat_beside_unpacked_devkit(official: Official, root: Path) -> Path:
    flat_beside_devkit(official, root)
    extract(root / DEVKIT, root)
    (root / DEVKIT).unlink()
    return root


def flat_beside_kaggles_labels(official: Official, root: Path) -> Path:
    """The content of CLS-LOC has been moved to the top."""
    as_kaggle(official, root)
    for split in ("train", "val", "test"):
        (root / CLS_LOC / split).rename(root / split)
    return root


LAYOUTS = [
    as_folders,
    as_kaggle,
    flat_beside_devkit,
    flat_beside_unpacked_devkit,
    flat_beside_kaggles_labels,
]


def batches(index: ImageIndex, split: str) -> list[Batch]:
    draws = centre_batches(np.arange(len(index)), 40, 16)
    if split == "train":
        draws = training_batches(0, 0, 3, 16, len(index), (36, 64))
    config = LoaderConfig(name="torchvision", workers=0)
    options: dict[str, Any] = {"on_error": "stop", "on_event": pytest.fail}
    return list(load(index, draws, crop=32, loader=config, **options))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_data_set(
    official: Official, tmp_path: Path, layout: Callable[[Official, Path], Path]
) -> None:
    root = layout(official, tmp_path / "set")
    before = sorted(root.rglob("*"))
    for split in ("train", "val", "test"):
        ours = scan_folder(root, split)
        theirs = scan_folder(official.root, split)
        assert ours.classes == theirs.classes == official.classes
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert ours.names.tolist() == theirs.names.tolist()
        assert ours.fingerprint() == theirs.fingerprint()
        assert [ours.read(i) for i in range(len(ours))] == [
            theirs.read(i) for i in range(len(theirs))
        ]
        assert all(Path(ours.path(i)).is_file() for i in range(len(ours)))
        assert split == "test" or class_names(root, split) == official.classes
        assert ours.remarks() == theirs.remarks() == []
        for a, b in zip(batches(ours, split), batches(theirs, split), strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
    assert sorted(root.rglob("*")) == before


def test_labels_and_words_are_the_true_ones(official: Official, tmp_path: Path) -> None:
    root = as_kaggle(official, tmp_path / "set")
    val = scan_folder(root, "val")
    assert len(val) == len(official.val)
    for i, name in enumerate(val.names.tolist()):
        assert val.classes[val.labels[i]] == official.val_wnids[name.decode()]
    assert open_devkit(root).words == open_devkit(official.root).words
    shuffled = scan_folder(root, "val", classes=official.classes[::-1])
    for i, name in enumerate(shuffled.names.tolist()):
        assert shuffled.classes[shuffled.labels[i]] == official.val_wnids[name.decode()]
        assert shuffled.read(i) == official.val[name.decode()]


def test_a_submission_needs_the_devkits_numbers(official: Official, tmp_path: Path) -> None:
    root = as_kaggle(official, tmp_path / "set")
    with pytest.raises(UserError, match=rf"numbers the classes as {DEVKIT} does"):
        open_test_images(str(root), official.classes, lambda: None)
    shutil.copy(official.root / DEVKIT, root)
    test = open_test_images(str(root), official.classes, lambda: None)
    assert [name.decode() for name in test.names.tolist()] == list(official.test)
    ids = submission_ids(str(root), official.classes)
    assert [official.wnids[i - 1] for i in ids] == official.classes


def lines_of(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], Any]:
    def do(root: Path) -> None:
        lines = (root / name).read_text().splitlines(keepends=True)
        (root / name).write_text("".join(change(lines)))

    return do


BAD: list[tuple[Callable[[Path], Any], str]] = [
    (lines_of(SOLUTION, lambda all_: all_[:-1]), r"csv does not label images 1, 2, 3, \.\.\. once"),
    (lines_of(SOLUTION, lambda all_: [*all_, all_[1]]), r"csv does not label images 1, 2"),
    (lines_of(SOLUTION, lambda all_: all_[:1]), r"csv does not label images 1, 2"),
    (lines_of(SOLUTION, lambda all_: all_[1:]), r"csv cannot be understood"),
    (lines_of(SOLUTION, lambda all_: [*all_, "x_00000041,n9 1 1 2 2\n"]), r"understood.*'n9'"),
    (lines_of(SOLUTION, lambda all_: [*all_, "x_00000041,\n"]), r"csv cannot be understood"),
    (lines_of(SOLUTION, lambda all_: [*all_, "x_00000041\n"]), r"csv cannot be understood"),
    (lines_of(WORDS, lambda all_: [*all_, "n9\n"]), r"mapping.txt cannot be understood"),
    (lambda root: (root / WORDS).write_bytes(b"n9 \xff\n"), r"mapping.txt cannot be understood"),
    (lambda root: (root / WORDS).unlink(), rf"no class folders, .* no labels: .*{DEVKIT} or Kagg"),
    (lambda root: next((root / CLS_LOC / "val").iterdir()).unlink(), r"39 images but LOC.* 40"),
    (
        lambda root: (root / CLS_LOC / "val" / "ILSVRC2012_val_00000007.JPEG").rename(
            root / CLS_LOC / "val" / "ILSVRC2012_val_00000047.JPEG"
        ),
        r"00000047.JPEG' \(1 such\), which LOC_val_solution.csv does not label",
    ),
]


def test_damaged_files_are_refused(official: Official, tmp_path: Path) -> None:
    whole = as_kaggle(official, tmp_path / "whole")
    for split in ("train", "test"):
        shutil.rmtree(whole / CLS_LOC / split)
    for number, (spoil, sentence) in enumerate(BAD):
        root = tmp_path / str(number)
        shutil.copytree(whole, root)
        spoil(root)
        with pytest.raises(UserError, match=sentence) as refusal:
            scan_folder(root, "val")
        assert "\n" not in str(refusal.value)
        assert str(root) in str(refusal.value)


def test_training_and_testing_on_kaggles_folder(official: Official, tmp_path: Path) -> None:
    root = f"data.root={as_kaggle(official, tmp_path / 'set')}"
    options = [*TINY, "data=folder", root, f"runs={tmp_path}", "name=kaggle", "max_steps=2"]
    run_program("train.py", *options)
    assert [line["images"] for line in metrics(tmp_path / "kaggle") if line["kind"] == "val"] == [
        40
    ]
    last = f"checkpoint={tmp_path}/kaggle/checkpoints/last.pt"
    done = run_program("eval.py", last, f"out={tmp_path}/result.json")
    assert "fish, Piscis" in done.stdout
    assert json.loads((tmp_path / "result.json").read_text())["images"] == 40
