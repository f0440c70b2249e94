"""Which images exist, their labels, and where their bytes lie.

A data set is a folder in one of these layouts, which give the same order and labels:

- `root/<split>/<class>/*`, as ImageNet is commonly kept (data/sources/folders.py);
- the tars of ImageNet as they are distributed, and its development kit (data/sources/imagenet.py);
- what Kaggle gives (data/sources/kaggle.py): class folders train/, but val/ without any.

Classes are numbered in the order of the sorted names of the training classes (for ImageNet: the
rank of the WordNet id). Images are in order of class, then of name.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from configs.schema import DataConfig
from data.sources.cache import OnProgress, no_report
from data.sources.folders import class_folders, refuse_closed, scan_classes, scan_flat
from data.sources.image_index import ImageIndex
from data.sources.imagenet import (
    DEVKIT,
    TARS,
    find_tar,
    has_tars,
    index_tar,
    label_files,
    label_val,
    open_devkit,
)
from data.sources.kaggle import SOLUTION, SPLITS
from data.synthetic import make_synthetic

_DEFAULT_ROOT = "datasets/imagenet"


def scan_folder(
    root: Path | str,
    split: str,
    classes: Sequence[str] | None = None,
    on_progress: OnProgress = no_report,
) -> ImageIndex:
    """The images of a split of the data set in `root`: .jpg .jpeg .png .bmp .webp, either case.

    They are those in the folder of the split or, if there is none, in its official tar. Labels are
    positions in `classes`; None: in the sorted names of the training classes (if there are none, of
    the split's own). A class may lack images in val, not in train. The list is kept in the user's
    cache folder until its source changes.

    Raises UserError if there is no such folder or tar, no class or image, an unknown class, or if
    a file is missing or damaged.
    """
    root = _existing(root, split)
    if split_folder(root, split):
        index = index_folder(root, split, on_progress, refuse_empty=split == "train")
    else:
        index = index_tar(root, split, on_progress)
    if classes is None and split != "train":
        has_train = split_folder(root, "train") or find_tar(root, "train")
        classes = class_names(root, "train") if has_train else None
    return index.relabelled(classes) if classes else index


def split_folder(root: Path, split: str) -> Path | None:
    """root/<split>, or Kaggle's root/ILSVRC/Data/CLS-LOC/<split>, if either is there.

    Raises UserError if it is a broken link.
    """
    for folder in (root / split, root / SPLITS / split):
        if folder.is_dir():
            return folder
        if folder.is_symlink():
            raise UserError(
                f"{folder} is a link to {os.readlink(folder)}, which is not a readable folder: "
                "is its disk mounted?"
            )
    return None


def index_folder(
    root: Path, split: str, on_progress: OnProgress = no_report, *, refuse_empty: bool = False
) -> ImageIndex:
    """The images in the folder of a split, labelled by its own classes.

    Validation images may lie there without class folders, labelled by the devkit or Kaggle's files;
    test images have no label. Raises as scan_folder does and, with refuse_empty, for a class
    without images.
    """
    folder = split_folder(root, split) or root / split
    is_flat = split == "test" or (split == "val" and not class_folders(folder))
    if not is_flat:
        scan = scan_classes(folder, refuse_empty=refuse_empty, on_progress=on_progress)
        labels = np.repeat(np.arange(len(scan.classes)), scan.counts)
        return ImageIndex(
            scan.classes, labels, str(folder), names=scan.names, left_out=scan.left_out
        )
    scan = scan_flat(folder, on_progress)
    classes, labels = list[str](), np.full(len(scan.names), -1, np.int64)
    if split == "val":
        if not label_files(root):
            raise UserError(
                f"{folder} has no class folders, and {root} has no labels: images are expected as "
                f"{folder}/<class>/<image>, or {DEVKIT} or Kaggle's {SOLUTION} in {root}"
            )
        devkit = open_devkit(root)
        classes, labels = devkit.classes, label_val(folder, scan.names, devkit)
    index = ImageIndex(
        classes, labels, str(folder), names=scan.names, flat=True, left_out=scan.left_out
    )
    return index.only(np.argsort(labels, kind="stable"))


def class_names(root: Path | str, split: str) -> list[str]:
    """Sorted names of the classes of a split. Raises UserError if there is no such split."""
    root = _existing(root, split)
    folder = split_folder(root, split)
    names = list(class_folders(folder)) if folder else []
    if names or (folder and split == "train"):
        return names
    return open_devkit(root).classes


@dataclass(frozen=True)
class Dataset:
    """Training and validation images with the same classes."""

    train: ImageIndex
    val: ImageIndex

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.train.classes)

    def remarks(self) -> list[str]:
        """Sentences on what a user may not expect."""
        return [*self.train.remarks(), *self.val.remarks()]


def open_dataset(data: DataConfig, on_progress: OnProgress) -> Dataset:
    """The data set at data.root; the embedded one is generated on first use.

    on_progress is called now and then while a large set is listed for the first time.

    Raises UserError for a root that is missing, empty, inconsistent, or of another number of
    classes than data.num_classes.
    """
    if data.name == "synthetic":
        make_synthetic(Path(data.root))
    train = scan_folder(data.root, "train", on_progress=on_progress)
    val = scan_folder(data.root, "val", train.classes, on_progress)
    count = len(train.classes)
    if data.num_classes not in (None, count):
        raise UserError(
            f"{train.folder} has {count} classes but data.num_classes={data.num_classes}: "
            f"type data=folder for any image folder, or data.num_classes={count}"
        )
    return Dataset(train, val)


def refuse_missing_root(data: DataConfig) -> None:
    """Raise UserError, before torch is loaded, if there is no data set at data.root."""
    if data.name != "synthetic":
        for split in ("train", "val"):
            _existing(data.root, split)


def _existing(root: Path | str, split: str) -> Path:
    """The absolute path of a data set; raises UserError if it or the split is not there."""
    root = Path(root).expanduser().absolute()
    refuse_closed(root)
    if not root.is_dir():
        hint = "type data.root=/path/to/it"
        if root == Path(_DEFAULT_ROOT).absolute():
            hint = "type data.root=/path/to/imagenet, or data=synthetic for the generated set"
        raise UserError(f"no data set at {root}: {hint}")
    if not split_folder(root, split) and not has_tars(root):
        raise UserError(
            f"{root} has no folder {split}/: data.root is the folder that holds train/<class>/ "
            f"and val/<class>/, or {TARS['train'][0]}, {TARS['val'][0]} and {DEVKIT}, or Kaggle's "
            f"ILSVRC/ and {SOLUTION}"
        )
    return root
