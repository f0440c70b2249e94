"""ImageNet 2012 as it is distributed: tars that are read in place, and the development kit.

ILSVRC2012_img_train.tar holds one uncompressed tar of images for each class, n01440764.tar and so
on. The validation and test tars hold images; the validation labels are in the development kit.
Kaggle's files (data/sources/kaggle.py) may take its place.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.errors import UserError
from data.sources.cache import Arrays, OnProgress, no_report, scan_once
from data.sources.devkit import META, TRUTH, Devkit, read_devkit
from data.sources.folders import SCAN_THREADS
from data.sources.image_index import ImageIndex
from data.sources.kaggle import SOLUTION, WORDS, read_kaggle
from data.sources.tars import (
    BrokenTar,
    TarListing,
    TarReader,
    join,
    list_images,
    open_tar,
    read_headers,
    readable,
    stamp_of,
)

TARS = {
    "train": ("ILSVRC2012_img_train.tar",),
    "val": ("ILSVRC2012_img_val.tar",),
    "test": ("ILSVRC2012_img_test_v10102019.tar", "ILSVRC2012_img_test.tar"),  # new, first release
}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_UNPACKED = "ILSVRC2012_devkit_t12"
NUM_IMAGES = {"train": 1_281_167, "val": 50_000, "test": 100_000}

_FORMAT = 2  # of a scan in the cache: raise it when the format changes


def find_tar(root: Path, split: str) -> Path | None:
    """The official tar of a split in this folder, if it is there."""
    names = TARS.get(split, ())
    return next((root / name for name in names if os.path.lexists(root / name)), None)


def has_tars(root: Path) -> bool:
    """Whether this folder holds any of the official tars."""
    return any(find_tar(root, split) for split in TARS)


def label_files(root: Path) -> list[Path]:
    """The files here that name the classes and label the validation images, if there are any.

    They are the devkit, its two files if it is unpacked, or Kaggle's two.
    """
    for names in ([DEVKIT], [f"{_UNPACKED}/{META}", f"{_UNPACKED}/{TRUTH}"], [SOLUTION, WORDS]):
        if all(os.path.lexists(root / name) for name in names):
            return [root / name for name in names]
    return []


def open_devkit(root: Path) -> Devkit:
    """The devkit in this folder, or Kaggle's files; raises UserError if missing or damaged."""
    files = label_files(root)
    if not files:
        has = "has ImageNet's tars but not" if has_tars(root) else "does not have"
        raise UserError(
            f"{root} {has} {DEVKIT}, which names the classes and labels the validation images: "
            "download it too, and put it there"
        )
    if files[0].name == SOLUTION:
        return read_kaggle(root)
    return read_devkit(root / (DEVKIT if files[0].name == DEVKIT else _UNPACKED))


def label_val(source: Path, names: npt.NDArray[np.bytes_], devkit: Devkit) -> npt.NDArray[np.int64]:
    """[N] our labels of the validation images in `source`.

    Raises UserError unless they are the images that the devkit labels.
    """
    if len(names) != len(devkit.val_ids):
        raise UserError(
            f"{source} holds {len(names):,} images but {devkit.name} labels "
            f"{len(devkit.val_ids):,}: they do not belong together, or one of them is not whole"
        )
    labels = devkit.labels_of(names)
    if fault := unlabelled(names[labels < 0], devkit):
        raise UserError(f"{source} {fault}: they do not belong together")
    return labels


def index_tar(root: Path, split: str, on_progress: OnProgress = no_report) -> ImageIndex:
    """The images of the official tar of a split, labelled by the devkit's classes in order of name.

    The list is kept in the user's cache folder until the size or a time of the tar or the devkit
    changes. Raises UserError if a file is missing, unreadable or damaged, or if the tar and the
    devkit do not belong together.
    """
    path = find_tar(root, split)
    if path is None:
        raise UserError(
            f"{root} has ImageNet's tars but neither {TARS[split][0]} nor a folder {split}/: "
            "download it too, and put it beside them"
        )

    def scan() -> Arrays:
        devkit = open_devkit(root)
        if split == "train":
            return _scan_train(path, devkit, on_progress)
        return _scan_flat(path, devkit, split)

    state = scan_state(path)
    arrays = scan_once(path, state, scan=scan, on_progress=on_progress)
    size, modified_ns, _ = state["stamps"][0].tolist()
    names, counts = arrays["names"], arrays["counts"]
    reader = TarReader(
        str(path), (size, modified_ns), offsets=arrays["offsets"], sizes=arrays["sizes"]
    )
    labels = np.repeat(np.arange(len(counts)), counts)
    if split == "test":
        labels = np.full(len(names), -1)
    return ImageIndex(arrays["classes"].tolist(), labels, str(path), names=names, tar=reader)


def scan_state(path: Path) -> Arrays:
    """What a kept scan of this tar depends on; stamps: of the tar, then of the label files."""
    stamps = [stamp_of(file) for file in (path, *label_files(path.parent))]
    return {"format": np.array(_FORMAT), "stamps": np.array(stamps, np.int64)}


@dataclass(frozen=True)
class TrainTar:
    """The intact classes of a training tar, and its faults."""

    classes: dict[str, TarListing]  # in order of name
    faults: list[str]  # in order of importance

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Images of each class."""
        return np.array([len(listing) for listing in self.classes.values()], np.int64)


@dataclass(frozen=True)
class _ClassTar:
    """Where the tar of a class lies in the training tar: bytes start .. stop - 1."""

    name: str  # n01440764
    start: int
    stop: int


def read_train_tar(path: Path, on_progress: OnProgress = no_report) -> TrainTar:
    """Everything that the headers of a training tar say; classes are read in parallel.

    Of two intact class tars of the same name the last counts, as tar -x would keep it. Raises
    UserError only if the file cannot be read: damage is described in `faults`.
    """

    def list_class(class_tar: _ClassTar) -> TarListing:
        with open_tar(path) as file, readable(path):
            file.seek(class_tar.start)
            return list_images(file, class_tar.stop)

    class_tars, faults = _class_tars(path)
    faults += [f"holds {a.name}.tar twice" for a, b in pairwise(class_tars) if a.name == b.name]
    classes: dict[str, TarListing] = {}
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        listings = pool.map(list_class, class_tars)
        bar = tqdm(listings, f"indexing {path.name}", len(class_tars), unit="class", disable=None)
        for class_tar, listing in zip(class_tars, bar, strict=True):
            on_progress()
            if listing.fault:
                faults.append(f"{listing.fault}, in {class_tar.name}.tar")
                continue
            if not len(listing):
                faults.append(f"has no image in {class_tar.name}.tar")
            classes[class_tar.name] = listing
    return TrainTar(classes, faults)


def _class_tars(path: Path) -> tuple[list[_ClassTar], list[str]]:
    """The class tars of a training tar in order of name, and the faults found on the way."""
    class_tars = list[_ClassTar]()
    with open_tar(path) as file, readable(path):
        try:
            for header in read_headers(file):
                name, start = header.name.rpartition("/")[2], header.offset_data
                if header.isreg() and name.endswith(".tar") and not name.startswith("."):
                    class_tars.append(_ClassTar(name[:-4], start, start + header.size))
            faults = [] if class_tars else ["holds no class tars, such as n01440764.tar"]
        except BrokenTar as error:
            faults = [str(error)]
    return sorted(class_tars, key=lambda class_tar: class_tar.name), faults


def _scan_train(path: Path, devkit: Devkit, on_progress: OnProgress) -> Arrays:
    tar = read_train_tar(path, on_progress)
    if tar.faults:
        raise UserError(
            f"{path} {tar.faults[0]}{_and_more(tar.faults)}: {len(tar.classes):,} of its "
            f"{len(devkit.wnids):,} classes, {tar.counts.sum():,} images, are whole; "
            "download it again"
        )
    names, wnids = set(tar.classes), set(devkit.wnids)
    if differing := sorted(wnids - names) or sorted(names - wnids):
        verb = "lacks" if differing[0] in wnids else "has"
        raise UserError(
            f"{path} {verb} {differing[0]}.tar{_and_more(differing)}, unlike the classes of "
            f"{DEVKIT}: the two files do not belong together, download them again"
        )
    return _arrays(list(tar.classes), tar.counts, join(list(tar.classes.values())))


def _scan_flat(path: Path, devkit: Devkit, split: str) -> Arrays:
    """The images of the validation tar, sorted by label, or of the test tar."""
    with open_tar(path) as file, readable(path):
        images = list_images(file)
    if images.fault:
        raise UserError(
            f"{path} {images.fault}: {len(images):,} of its images are whole; download it again"
        )
    if not len(images):
        raise UserError(f"{path} holds no images: download it again")
    if split == "test":
        return _arrays(devkit.classes, np.zeros(len(devkit.wnids)), images)
    labels = label_val(path, images.names, devkit)
    counts = np.bincount(labels, minlength=len(devkit.wnids))
    return _arrays(devkit.classes, counts, images.only(np.argsort(labels, kind="stable")))


def _arrays(classes: list[str], counts: npt.NDArray[np.number], images: TarListing) -> Arrays:
    """A scan as it is kept in the cache."""
    return {
        "classes": np.array(classes),
        "counts": counts.astype(np.int64),
        "names": images.names,
        "offsets": images.offsets,
        "sizes": images.sizes,
    }


def unlabelled(names: npt.NDArray[np.bytes_], devkit: Devkit) -> str:
    """The fault of holding these validation images, which the devkit does not label; "": none."""
    if not len(names):
        return ""
    name = os.fsdecode(names[0])
    return f"holds {name!r} ({len(names):,} such), which {devkit.name} does not label"


def _and_more(items: list[str]) -> str:
    return f" (and {len(items) - 1:,} more)" if len(items) > 1 else ""
