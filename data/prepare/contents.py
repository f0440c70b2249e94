"""What a folder holds of a data set, whole or not: for checking, and to save what can be saved.

Training reads by data.sources.index, which refuses what is not whole.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.sources.devkit import Devkit
from data.sources.folders import class_folders, images_in, list_classes
from data.sources.imagenet import unlabelled
from data.sources.index import ImageIndex
from data.sources.tars import TarBytes, list_images, open_tar, readable, stamp_of
from data.sources.train_tar import read_train_tar


@dataclass(frozen=True)
class Contents:
    """The usable images of a split, and what is wrong with the tar or folder they are in."""

    index: ImageIndex  # a label is -1 where it is not known
    faults: list[str]  # empty: nothing; one sentence each, which does not name the tar or folder


def read_tar(path: Path, split: str, devkit: Devkit | None) -> Contents:
    """The images of an official tar of which all bytes are there: of train, whole classes only.

    All headers are read. Without a devkit, validation images have no labels. Raises UserError if
    the file cannot be read.
    """
    stamp = stamp_of(path)
    if split == "train":
        found = read_train_tar(path)
        counts = [len(one.names) for one in found.images]
        classes, images, faults = [one.name for one in found.classes], found.images, found.faults
        labels = np.repeat(np.arange(len(classes)), counts).astype(np.int64)
    else:
        with open_tar(path) as file, readable(path):
            images = [list_images(file)]
        faults = [images[0].fault] if images[0].fault else []
        classes = devkit.classes if devkit else []
        labels = np.full(len(images[0].names), -1, np.int64)
        if split == "val" and devkit:
            labels = devkit.labels_of(images[0].names)
            faults += unlabelled(images[0].names[labels < 0])
    names = np.concatenate([np.zeros(0, "S1"), *(one.names for one in images)])
    offsets = np.concatenate([np.zeros(0, np.int64), *(one.offsets for one in images)])
    sizes = np.concatenate([np.zeros(0, np.int64), *(one.sizes for one in images)])
    order = np.argsort(labels, kind="stable")
    tar = TarBytes(str(path), stamp, offsets[order], sizes[order])
    return Contents(ImageIndex(classes, labels[order], str(path), names[order], tar), faults)


def read_folder(folder: Path, split: str) -> Contents:
    """The images in `<folder>/<class>/`, or for the test images in the folder itself.

    Raises UserError if it cannot be read.
    """
    if split == "test":
        names = images_in(folder)
        labels = np.full(len(names), -1, np.int64)
        return Contents(ImageIndex([], labels, str(folder), names), [])
    if not class_folders(folder):
        return Contents(_nothing(folder), [f"has no class folders such as {split}/n01440764"])
    try:
        classes, counts, names = list_classes(folder, is_train=False)
    except UserError as error:
        return Contents(_nothing(folder), [str(error)])
    labels = np.repeat(np.arange(len(classes)), counts).astype(np.int64)
    return Contents(ImageIndex(classes, labels, str(folder), names), [])


def misplaced(index: ImageIndex, devkit: Devkit) -> list[str]:
    """Validation images in the folder of another class than the devkit's, as class/name."""
    truth = devkit.labels_of(index.names)
    place = {name: label for label, name in enumerate(devkit.classes)}
    here = np.array([place.get(name, -1) for name in index.classes], np.int64)[index.labels]
    wrong = np.flatnonzero((truth != here) & (truth >= 0))
    return ["/".join(Path(index.path(i)).parts[-2:]) for i in wrong.tolist()]


def class_counts(index: ImageIndex) -> dict[str, int]:
    """Class -> its number of images."""
    counts = np.bincount(index.labels[index.labels >= 0], minlength=len(index.classes))
    return dict(zip(index.classes, counts.tolist(), strict=True))


def rows_of_classes(index: ImageIndex) -> list[range]:
    """The places in the index of each class's images, in the order of the labels."""
    ends = list(accumulate(class_counts(index).values(), initial=int((index.labels < 0).sum())))
    return [range(first, end) for first, end in pairwise(ends)]


def _nothing(folder: Path) -> ImageIndex:
    return ImageIndex([], np.zeros(0, np.int64), str(folder), np.zeros(0, "S1"))
