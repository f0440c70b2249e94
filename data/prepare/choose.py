"""Which images are to be written as a folder layout: all of a tar, or the first of a data set."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from data.prepare.contents import read_tar, rows_of_classes
from data.sources.imagenet import TARS, find_tar, open_devkit, scan_tars
from data.sources.index import ImageIndex, scan_folder


def tar_index(root: Path, split: str, partial: bool) -> tuple[ImageIndex, list[str]]:
    """The images of the official tar of a split, and what is wrong with it.

    Raises UserError if the tar or the devkit is missing or, unless `partial`, damaged.
    """
    if not partial:
        scan = scan_tars(root, split)
        labels = np.repeat(np.arange(len(scan.classes)), scan.counts).astype(np.int64)
        if split == "test":
            labels = np.full(len(scan.names), -1, np.int64)
        return ImageIndex(scan.classes, labels, str(scan.path), scan.names, scan.images), []
    if (path := find_tar(root, split)) is None:
        raise UserError(f"{root} has no {TARS[split][0]}: download it")
    contents = read_tar(path, split, open_devkit(root))
    index = contents.index
    if split == "val":  # a file whose label is unknown has no folder to go to
        index = _only(index, np.flatnonzero(index.labels >= 0))
    return index, [f"{path} {fault}" for fault in contents.faults]


def subset_index(
    root: Path, split: str, classes: int | None, images: int | None, per_class: int | None
) -> ImageIndex:
    """The first images of the first classes of a split, of a data set in either layout.

    classes: how many; None: all. per_class: how many of each. images: how many in all, of each
    class as many as of another, or one more. A class that has fewer gives what it has.
    Raises UserError if there are not so many classes or images to give.
    """
    index = scan_folder(root, split)
    found = len(index.classes)
    if classes is not None and classes > found:
        raise UserError(f"{index.folder} has {found:,} classes, not --classes {classes}")
    count = classes or found
    if images is not None and images < count:
        raise UserError(f"--images {images} is less than one for each of {count:,} classes")
    wanted = [per_class if per_class is not None else len(index)] * count
    if images is not None:
        wanted = [images // count + (label < images % count) for label in range(count)]
    parts = zip(rows_of_classes(index), wanted, strict=False)
    rows = np.concatenate([np.array(part[:want], np.int64) for part, want in parts])
    chosen = _only(index, rows)
    return ImageIndex(index.classes[:count], chosen.labels, chosen.folder, chosen.names, chosen.tar)


def _only(index: ImageIndex, rows: npt.NDArray[np.int64]) -> ImageIndex:
    tar = index.tar.only(rows) if index.tar else None
    return ImageIndex(index.classes, index.labels[rows], index.folder, index.names[rows], tar)
