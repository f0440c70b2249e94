"""What images exist, their labels, and where their bytes lie.

A data set is a folder `root/<split>/<class>/*`, split train or val, as ImageNet is commonly kept.
Classes are numbered in the order of the sorted names of train's folders (for ImageNet: the rank of
the WordNet id), images are in order of class, then of name.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.errors import UserError

EXTENSIONS = (b".jpg", b".jpeg", b".png", b".bmp", b".webp")
DEFAULT_ROOT = "datasets/imagenet"

# A folder's time of change has a resolution. One that changed this short a time before it was
# scanned could change again without its time showing it, so that such a scan is not kept.
_SETTLED_NS = 2_000_000_000
_SCAN_THREADS = 16  # network file systems answer slowly but many at a time


@dataclass(frozen=True)
class ImageIndex:
    """N images and their labels. Picklable; readable from any thread or process."""

    classes: list[str]  # sorted names; a label is a place in this list
    labels: npt.NDArray[np.int64] = field(repr=False)  # [N] ascending
    folder: str  # root/split, absolute
    names: npt.NDArray[np.bytes_] = field(repr=False)  # [N] file names inside their class's folder

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        """Full path of image `i`, for messages."""
        return os.path.join(self.folder, self.classes[self.labels[i]], os.fsdecode(self.names[i]))

    def read(self, i: int) -> bytes:
        """The encoded file of image `i`. Raises OSError if it cannot be read."""
        with open(self.path(i), "rb") as file:
            return file.read()

    def fingerprint(self) -> str:
        """Hex SHA-256 of all labels, class and file names: equal where the data set is the same.

        Independent of where the data set lies. The images' contents are not read.
        """
        digest = hashlib.sha256()
        first = np.searchsorted(self.labels, np.arange(len(self.classes) + 1))
        for label, name in enumerate(self.classes):
            files = self.names[first[label] : first[label + 1]].tolist()
            digest.update(b"\0".join([b"%d" % label, os.fsencode(name), *files]) + b"\0\0")
        return digest.hexdigest()


def scan_folder(root: Path | str, split: str, classes: Sequence[str] | None = None) -> ImageIndex:
    """The images in `root/<split>/<class>/`: .jpg .jpeg .png .bmp .webp, in either case.

    Hidden files, other files and deeper folders are ignored, links are followed. Labels are
    places in `classes`; None: in the sorted names of the folders of `root/train` (where there is
    no train/: of the split itself). A class may lack images in val, not in train. The scan is
    kept in the user's cache folder and repeated when a class folder has changed.

    Raises UserError if there is no such folder, no class, no image, or an unknown class.
    """
    root = Path(root).expanduser().absolute()
    folder = root / split
    _refuse_missing(root, split)
    folders = _class_folders(folder)
    if not folders:
        raise UserError(
            f"{folder} has no class folders: images are expected as {folder}/<class>/<image>"
        )
    if classes is None:
        classes = list(_class_folders(root / "train")) if (root / "train").is_dir() else []
    order = list(classes) or list(folders)
    unknown = sorted(folders.keys() - set(order))
    if unknown:
        raise UserError(
            f"{folder} has a class folder {unknown[0]!r} ({len(unknown)} such) that the training "
            f"set {root / 'train'} does not have: remove it, or add its training images"
        )
    counts, names = _cached_scan(folder, folders)
    if not len(names):
        raise UserError(f"{folder} has class folders but no image ({_extensions()}) in any of them")
    empty = [name for name, count in zip(folders, counts, strict=True) if not count]
    if empty and split == "train":
        raise UserError(
            f"class folder {folder / empty[0]} has no image ({_extensions()}); {len(empty)} such "
            "in all: fill or remove it"
        )
    place = {name: label for label, name in enumerate(order)}
    labels = np.repeat(np.array([place[name] for name in folders], np.int64), counts)
    by_label = np.argsort(labels, kind="stable")
    return ImageIndex(order, labels[by_label], str(folder), names[by_label])


def class_names(root: Path | str, split: str) -> list[str]:
    """Sorted names of the class folders of a split. Raises UserError if there is no such folder."""
    root = Path(root).expanduser().absolute()
    _refuse_missing(root, split)
    return list(_class_folders(root / split))


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


def _extensions() -> str:
    return " ".join(extension.decode() for extension in EXTENSIONS)


def _refuse_missing(root: Path, split: str) -> None:
    if not root.is_dir():
        hint = "type data.root=/path/to/it"
        if root == Path(DEFAULT_ROOT).absolute():
            hint = "type data.root=/path/to/imagenet, or data=synthetic for the generated set"
        raise UserError(f"no data set at {root}: {hint}")
    if not (root / split).is_dir():
        raise UserError(
            f"{root} has no folder {split}/: data.root is the folder that holds train/<class>/ "
            "and val/<class>/"
        )


def _class_folders(folder: Path) -> dict[str, int]:
    """Class folder -> time of its last change in ns, in order of name."""
    try:
        with os.scandir(folder) as entries:
            times = {
                entry.name: entry.stat().st_mtime_ns
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir()
            }
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    return dict(sorted(times.items()))


def _list_images(folder: Path) -> npt.NDArray[np.bytes_]:
    """Sorted file names of the images in a folder."""
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.lower().endswith(EXTENSIONS)
                and not entry.name.startswith(b".")
                and entry.is_file()
            ]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    return np.array(sorted(names), np.bytes_)


def _cached_scan(
    folder: Path, folders: dict[str, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bytes_]]:
    """Number of images in each class folder, and all their names."""
    names, times = np.array(list(folders)), np.array(list(folders.values()), np.int64)
    cache = _cache_file(folder)
    try:
        with np.load(cache or os.devnull, allow_pickle=False) as kept:
            if np.array_equal(kept["classes"], names) and np.array_equal(kept["times"], times):
                return kept["counts"], kept["names"]
    except Exception:  # absent, or damaged in one of many ways: a scan mends them all
        pass
    settled = time.time_ns() - int(times.max()) > _SETTLED_NS
    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        found = list(pool.map(_list_images, [folder / name for name in folders]))
    counts, images = np.array([len(part) for part in found], np.int64), np.concatenate(found)
    if settled:
        _keep(cache, classes=names, times=times, counts=counts, names=images)
    return counts, images


def _cache_file(folder: Path) -> Path | None:
    """Where the scan of this folder is kept; None where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:
        return None
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
    return home / "rectifiers" / f"index-{name}.npz"


def _keep(cache: Path | None, **arrays: npt.NDArray[Any]) -> None:
    """Write the cache file in one step. It only saves time: where it cannot be, it is not."""
    if cache is None:
        return
    part = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=cache.parent, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(part, cache)
    except OSError:
        if part is not None:
            Path(part).unlink(missing_ok=True)
