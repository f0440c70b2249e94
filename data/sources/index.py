"""Which images exist, their labels, and where their bytes lie.

A data set is a folder in one of two layouts, which give the same order and labels:

- `root/<split>/<class>/*`, as ImageNet is commonly kept (data/sources/folders.py);
- the tars of ImageNet as they are distributed, and its development kit (data/sources/imagenet.py).

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
from data.sources.folders import class_folders, list_classes, refuse_closed
from data.sources.imagenet import DEVKIT, TARS, find_tar, has_tars, open_devkit, scan_tars
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

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        """Full path of image `i`, for messages; in a tar, /path/of.tar:class/name."""
        name, label = os.fsdecode(self.names[i]), self.labels[i]
        inside = name if label < 0 else os.path.join(self.classes[label], name)
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
                "set does not have: remove it, or add its training images"
            )
        new_label = {name: label for label, name in enumerate(classes)}
        # The last entry is for images without a label, whose label is -1.
        table = np.array([*(new_label[name] for name in self.classes), -1], np.int64)
        index = replace(self, classes=list(classes), labels=table[self.labels])
        return index.only(np.argsort(index.labels, kind="stable"))

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

    They are those in `root/<split>/<class>/` or, if there is no such folder, in the official tar of
    the split. Labels are positions in `classes`; None: in the sorted names of the training classes
    (if there are none, of the split's own). A class may lack images in val, not in train. The scan
    is kept in the user's cache folder until its source changes.

    Raises UserError if there is no such folder or tar, no class, no image, an unknown class, or
    if a file is missing or damaged.
    """
    root = Path(root).expanduser().absolute()
    _refuse_missing(root, split)
    if (root / split).is_dir():
        index = index_folder(root / split, split == "train", on_progress)
    else:
        index = index_tar(root, split, on_progress)
    if classes is None and split != "train":
        has_train = (root / "train").is_dir() or find_tar(root, "train")
        classes = class_names(root, "train") if has_train else None
    return index.relabelled(classes) if classes else index


def index_folder(folder: Path, is_train: bool, on_progress: OnProgress = no_report) -> ImageIndex:
    """The images in `folder/<class>/`, labelled by its own classes; raises as list_classes does."""
    classes, counts, names = list_classes(folder, is_train, on_progress)
    labels = np.repeat(np.arange(len(classes)), counts)
    return ImageIndex(classes, labels, folder=str(folder), names=names)


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
    if (root / split).is_dir():
        return list(class_folders(root / split))
    return open_devkit(root).classes


@dataclass(frozen=True)
class Dataset:
    """Training and validation images with a common class order."""

    train: ImageIndex
    val: ImageIndex
    num_classes: int


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
    if not (root / split).is_dir() and not has_tars(root):
        raise UserError(
            f"{root} has no folder {split}/: data.root is the folder that holds train/<class>/ "
            f"and val/<class>/, or {TARS['train'][0]}, {TARS['val'][0]} and {DEVKIT}"
        )
