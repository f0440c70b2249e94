"""Which images exist, their labels, and where their bytes lie.

A data set is a folder in one of these layouts, which give the same order and labels:

- `root/<split>/<class>/*`, as ImageNet is commonly kept (data/sources/folders.py);
- the tars of ImageNet as they are distributed, and its development kit (data/sources/imagenet.py);
- what Kaggle gives (data/sources/kaggle.py): class folders train/, but val/ without any.

Classes are numbered in the order of the sorted names of the training classes (for ImageNet: the
rank of the WordNet id). Images are in order of class, then of name.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from configs.schema import DataConfig
from data.sources.cache import OnProgress, no_report
from data.sources.folders import (
    class_folders,
    refuse_closed,
    scan_classes,
    scan_flat,
)
from data.sources.imagenet import (
    DEVKIT,
    TARS,
    find_tar,
    has_tars,
    label_files,
    label_val,
    open_devkit,
    scan_tars,
)
from data.sources.kaggle import SOLUTION, SPLITS
from data.sources.tars import TarReader
from data.synthetic import make_synthetic

DEFAULT_ROOT = "datasets/imagenet"


@dataclass(frozen=True)
class ImageIndex:
    """N images and their labels. Picklable; readable from any thread or process."""

    classes: list[str]  # sorted names; a label is a position in this list
    labels: npt.NDArray[np.int64] = field(repr=False)  # [N] ascending; -1: unknown (test images)
    folder: str  # root/split, or the tar, absolute
    names: npt.NDArray[np.bytes_] = field(repr=False)  # [N] file names inside their class's folder
    tar: TarReader | None = field(default=None, repr=False)  # [N] None: the images are files
    flat: bool = False  # the files lie in `folder` itself, whatever their class
    left_out: str = field(default="", repr=False)  # a sentence on files that are not used

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        """Full path of image `i`, for messages; in a tar, /path/of.tar:class/name."""
        name, label = os.fsdecode(self.names[i]), self.labels[i]
        is_flat = self.flat or label < 0
        inside = name if is_flat else os.path.join(self.classes[label], name)
        return f"{self.folder}:{inside}" if self.tar else os.path.join(self.folder, inside)

    def read(self, i: int) -> bytes:
        """The encoded file of image `i`.

        Raises OSError if it cannot be read, UserError if its tar has changed since it was indexed.
        """
        if self.tar:
            return self.tar.read(i)
        with open(self.path(i), "rb") as file:
            return file.read()

    def rows_by_class(self) -> list[range]:
        """The rows of each class's images, in the order of the labels."""
        first = np.searchsorted(self.labels, np.arange(len(self.classes) + 1))
        return [range(start, stop) for start, stop in pairwise(first.tolist())]

    def only(self, rows: npt.NDArray[np.int64]) -> "ImageIndex":
        """These images, in this order."""
        tar = self.tar and self.tar.only(rows)
        return replace(self, labels=self.labels[rows], names=self.names[rows], tar=tar)

    def relabelled(self, classes: Sequence[str]) -> "ImageIndex":
        """The same images with their classes numbered as in `classes`, in that order.

        Raises UserError if `classes` lacks one of theirs.
        """
        if list(classes) == self.classes:
            return self
        unknown = sorted(set(self.classes) - set(classes))
        if unknown:
            raise UserError(
                f"{self.folder} has a class {unknown[0]!r} ({len(unknown)} such) that the training "
                "set does not have: remove it, or add its training images; or give eval.py the "
                "data.root that the network was trained on"
            )
        new_label = {name: label for label, name in enumerate(classes)}
        # The last entry is for images without a label, whose label is -1.
        table = np.array([*(new_label[name] for name in self.classes), -1], np.int64)
        index = replace(self, classes=list(classes), labels=table[self.labels])
        return index.only(np.argsort(index.labels, kind="stable"))

    def remarks(self) -> list[str]:
        """Sentences on what a user may not expect: files not used, classes without images."""
        told = [self.left_out] if self.left_out else []
        rows = self.rows_by_class()
        lacking = [name for name, part in zip(self.classes, rows, strict=True) if not part]
        if lacking and (self.labels >= 0).any():
            told.append(
                f"{self.folder} has no image of {len(lacking):,} of {len(self.classes):,} classes, "
                f"such as {lacking[0]}: errors are on the others"
            )
        return told

    def fingerprint(self) -> str:
        """Hex SHA-256 of all labels, class and file names: equal where the data set is the same.

        Independent of the layout and of where the data set lies. The contents are not read.
        """
        digest = hashlib.sha256()
        num_unlabelled = int(np.searchsorted(self.labels, 0))
        if num_unlabelled:
            digest.update(b"\0".join([b"-1", b"", *self.names[:num_unlabelled].tolist()]) + b"\0\0")
        for label, (name, rows) in enumerate(zip(self.classes, self.rows_by_class(), strict=True)):
            files = self.names[rows.start : rows.stop].tolist()
            digest.update(b"\0".join([b"%d" % label, os.fsencode(name), *files]) + b"\0\0")
        return digest.hexdigest()


def scan_folder(
    root: Path | str,
    split: str,
    classes: Sequence[str] | None = None,
    on_progress: OnProgress = no_report,
) -> ImageIndex:
    """The images of a split of the data set in `root`: .jpg .jpeg .png .bmp .webp, either case.

    They are those in the folder of the split or, if there is none, in its official tar. Labels are
    positions in `classes`; None: in the sorted names of the training classes (if there are none, of
    the split's own). A class may lack images in val, not in train. The scan is kept in the user's
    cache folder until its source changes.

    Raises UserError if there is no such folder or tar, no class, no image, an unknown class, or
    if a file is missing or damaged.
    """
    root = Path(root).expanduser().absolute()
    _refuse_missing(root, split)
    if split_folder(root, split):
        index = index_folder(root, split, on_progress, refuse_empty=split == "train")
    else:
        index = index_tar(root, split, on_progress)
    if classes is None and split != "train":
        has_train = split_folder(root, "train") or find_tar(root, "train")
        classes = class_names(root, "train") if has_train else None
    return index.relabelled(classes) if classes else index


def split_folder(root: Path, split: str) -> Path | None:
    """root/<split>, or root/ILSVRC/Data/CLS-LOC/<split> as Kaggle gives it; None: neither is there.

    Raises UserError if it is a link to what is not there.
    """
    for folder in (root / split, root / SPLITS / split):
        if folder.is_dir():
            return folder
        if folder.is_symlink():
            raise UserError(
                f"{folder} is a link to {os.readlink(folder)}, which is no folder that can be "
                "read: is its disk mounted?"
            )
    return None


def index_folder(
    root: Path, split: str, on_progress: OnProgress = no_report, *, refuse_empty: bool = False
) -> ImageIndex:
    """The images in the folder of a split, labelled by its own classes.

    Validation images may lie there without class folders, labelled by the devkit or Kaggle's files;
    test images have no label. Raises as scan_folder does, for a class without images if so asked.
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


def index_tar(root: Path, split: str, on_progress: OnProgress = no_report) -> ImageIndex:
    """The images of the official tar of a split, labelled by the devkit's classes in order of name.

    Raises as scan_tars does.
    """
    scan = scan_tars(root, split, on_progress)
    labels = np.repeat(np.arange(len(scan.classes)), scan.counts)
    if split == "test":
        labels = np.full(len(scan.names), -1, np.int64)
    return ImageIndex(
        scan.classes, labels, folder=str(scan.path), names=scan.names, tar=scan.reader
    )


def class_names(root: Path | str, split: str) -> list[str]:
    """Sorted names of the classes of a split. Raises UserError if there is no such split."""
    root = Path(root).expanduser().absolute()
    _refuse_missing(root, split)
    folder = split_folder(root, split)
    names = list(class_folders(folder)) if folder else []
    if names or (folder and split == "train"):
        return names
    return open_devkit(root).classes


@dataclass(frozen=True)
class Dataset:
    """Training and validation images with a common class order."""

    train: ImageIndex
    val: ImageIndex
    num_classes: int

    def remarks(self) -> list[str]:
        """Sentences on what a user may not expect."""
        return [*self.train.remarks(), *self.val.remarks()]


def open_dataset(data: DataConfig, on_progress: OnProgress) -> Dataset:
    """The data set at data.root; the embedded one is generated on first use.

    on_progress is called now and then while a large set is listed for the first time.

    Raises UserError for a root that is missing, empty, inconsistent or of another class count.
    """
    if data.name == "synthetic":
        make_synthetic(Path(data.root))
    train = scan_folder(data.root, "train", on_progress=on_progress)
    val = scan_folder(data.root, "val", train.classes, on_progress)
    return Dataset(train, val, check_dataset(train, val, data.num_classes))


def check_dataset(train: ImageIndex, val: ImageIndex, num_classes: int | None) -> int:
    """The number of classes, once it is clear that train and val belong together.

    Raises UserError if val has other classes than train, or if there are not `num_classes` (None:
    any number) of them.
    """
    if val.classes != train.classes:
        unknown = sorted(set(val.classes) - set(train.classes))
        raise UserError(
            f"{val.folder} and {train.folder} do not have the same classes"
            + (f": {unknown[0]!r} is unknown to the training set" if unknown else "")
        )
    count = len(train.classes)
    if num_classes is not None and count != num_classes:
        raise UserError(
            f"{train.folder} has {count} classes but data.num_classes={num_classes}: "
            f"type data=folder for any image folder, or data.num_classes={count}"
        )
    return count


def _refuse_missing(root: Path, split: str) -> None:
    refuse_closed(root)
    if not root.is_dir():
        hint = "type data.root=/path/to/it"
        if root == Path(DEFAULT_ROOT).absolute():
            hint = "type data.root=/path/to/imagenet, or data=synthetic for the generated set"
        raise UserError(f"no data set at {root}: {hint}")
    if not split_folder(root, split) and not has_tars(root):
        raise UserError(
            f"{root} has no folder {split}/: data.root is the folder that holds train/<class>/ "
            f"and val/<class>/, or {TARS['train'][0]}, {TARS['val'][0]} and {DEVKIT}, or Kaggle's "
            f"ILSVRC/ and {SOLUTION}"
        )
