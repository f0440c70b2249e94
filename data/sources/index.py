"""What images exist, their labels, and where their bytes lie.

A data set is a folder of one of two layouts, which give the same order and labels:

- `root/<split>/<class>/*`, split train or val, as ImageNet is commonly kept
  (data/sources/folders.py);
- the tars of ImageNet as they are distributed, and its development kit (data/sources/imagenet.py).

Classes are numbered in the order of the sorted names of the training classes (for ImageNet: the
rank of the WordNet id), images are in order of class, then of name.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from configs.schema import DataConfig
from data.sources.cache import OnProgress, no_report
from data.sources.folders import class_folders, list_classes, refuse_closed
from data.sources.imagenet import DEVKIT, TARS, find_tar, has_tars, open_devkit, scan_tars
from data.sources.tars import TarBytes
from data.synthetic import make_synthetic

DEFAULT_ROOT = "datasets/imagenet"


@dataclass(frozen=True)
class ImageIndex:
    """N images and their labels. Picklable; readable from any thread or process."""

    classes: list[str]  # sorted names; a label is a place in this list
    labels: npt.NDArray[np.int64] = field(repr=False)  # [N] ascending; -1: not known (test images)
    folder: str  # root/split, or the tar, absolute
    names: npt.NDArray[np.bytes_] = field(repr=False)  # [N] file names inside their class's folder
    tar: TarBytes | None = field(default=None, repr=False)  # [N] None: they are files

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

    def fingerprint(self) -> str:
        """Hex SHA-256 of all labels, class and file names: equal where the data set is the same.

        Independent of where and in which layout the data set lies. The contents are not read.
        """
        digest = hashlib.sha256()
        first = np.searchsorted(self.labels, np.arange(len(self.classes) + 1))
        if first[0]:
            digest.update(b"\0".join([b"-1", b"", *self.names[: first[0]].tolist()]) + b"\0\0")
        for label, name in enumerate(self.classes):
            files = self.names[first[label] : first[label + 1]].tolist()
            digest.update(b"\0".join([b"%d" % label, os.fsencode(name), *files]) + b"\0\0")
        return digest.hexdigest()


def scan_folder(
    root: Path | str,
    split: str,
    classes: Sequence[str] | None = None,
    on_progress: OnProgress = no_report,
) -> ImageIndex:
    """The images of a split of the data set in `root`: .jpg .jpeg .png .bmp .webp, either case.

    They are those of `root/<split>/<class>/` or, where there is no such folder, of the official
    tar of the split. Labels are places in `classes`; None: in the sorted names of the training
    classes (where there are none: of the split itself). A class may lack images in val, not in
    train. The scan is kept in the user's cache folder and repeated when its source has changed; of
    several processes one does it.

    Raises UserError if there is no such folder or tar, no class, no image, an unknown class, or
    if a file is missing or damaged.
    """
    root = Path(root).expanduser().absolute()
    _refuse_missing(root, split)
    folder, tar = root / split, None
    if folder.is_dir():
        found, counts, names = list_classes(folder, split == "train", on_progress)
    else:
        scan = scan_tars(root, split, on_progress)
        folder, found, counts, names = scan.path, scan.classes, scan.counts, scan.names
        tar = scan.images
    if classes is None:
        classes = found if split == "train" else _training_classes(root)
    order = list(classes) or found
    unknown = sorted(set(found) - set(order))
    if unknown:
        raise UserError(
            f"{folder} has a class {unknown[0]!r} ({len(unknown)} such) that the training set "
            "does not have: remove it, or add its training images"
        )
    place = {name: label for label, name in enumerate(order)}
    labels = np.repeat(np.array([place[name] for name in found], np.int64), counts)
    if split == "test" and tar:
        labels = np.full(len(names), -1, np.int64)
    by_label = np.argsort(labels, kind="stable")
    return ImageIndex(
        order, labels[by_label], str(folder), names[by_label], tar and tar.only(by_label)
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

    on_progress is called now and then while a large set is being listed for the first time.

    Raises UserError for a root that is missing, empty, inconsistent or of another class count.
    """
    if data.name == "synthetic":
        make_synthetic(Path(data.root))
    train = scan_folder(data.root, "train", on_progress=on_progress)
    val = scan_folder(data.root, "val", train.classes, on_progress)
    return Dataset(train, val, check_dataset(train, val, data.num_classes))


def check_dataset(train: ImageIndex, val: ImageIndex, num_classes: int | None) -> int:
    """The number of classes, once train and val are known to fit together.

    Raises UserError if val labels other classes than train, or if there are not `num_classes`
    (None: any number) of them.
    """
    if val.classes != train.classes:
        unknown = sorted(set(val.classes) - set(train.classes))
        raise UserError(
            f"{val.folder} and {train.folder} do not have the same classes"
            + (f": {unknown[0]!r} is unknown to the training set" if unknown else "")
        )
    found = len(train.classes)
    if num_classes is not None and found != num_classes:
        raise UserError(
            f"{train.folder} has {found} classes but data.num_classes={num_classes}: "
            f"type data=folder for any image folder, or data.num_classes={found}"
        )
    return found


def _training_classes(root: Path) -> list[str]:
    """Empty if there is no training set."""
    if (root / "train").is_dir():
        return list(class_folders(root / "train"))
    return open_devkit(root).classes if find_tar(root, "train") else []


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
