"""ImageNet 2012 as it is distributed: tars that are read in place, and the development kit.

ILSVRC2012_img_train.tar holds one uncompressed tar of images for each class, n01440764.tar and so
on; the validation and test tars hold images, whose labels are in the development kit.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from data.sources.cache import Arrays, OnProgress, no_report, scan_once
from data.sources.devkit import Devkit, read_devkit
from data.sources.tars import (
    TarBytes,
    list_images,
    open_tar,
    readable,
    stamp_of,
)
from data.sources.train_tar import read_train_tar

TARS = {
    "train": ("ILSVRC2012_img_train.tar",),
    "val": ("ILSVRC2012_img_val.tar",),
    "test": ("ILSVRC2012_img_test_v10102019.tar", "ILSVRC2012_img_test.tar"),  # new, first release
}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
NUM_IMAGES = {"train": 1_281_167, "val": 50_000, "test": 100_000}

_FORMAT = 1  # of the kept scan: to be raised when it changes


@dataclass(frozen=True)
class TarScan:
    """The images of a split, in order of class, then of name."""

    path: Path  # of the tar
    classes: list[str]  # sorted
    counts: npt.NDArray[np.int64]  # images of each class; in all fewer than names: unlabelled
    names: npt.NDArray[np.bytes_]  # [N]
    images: TarBytes  # [N]


def find_tar(root: Path, split: str) -> Path | None:
    """The official tar of a split in this folder, if it is there."""
    names = TARS.get(split, ())
    return next((root / name for name in names if os.path.lexists(root / name)), None)


def has_tars(root: Path) -> bool:
    """Whether some official tar is in this folder."""
    return any(find_tar(root, split) for split in TARS)


def open_devkit(root: Path) -> Devkit:
    """The devkit that lies beside the tars. Raises UserError if there is none, or a bad one."""
    if not os.path.lexists(root / DEVKIT):
        found = "has ImageNet's tars but not" if has_tars(root) else "does not have"
        raise UserError(
            f"{root} {found} {DEVKIT}, which names the classes and labels the validation images: "
            "download it too, and put it there"
        )
    return read_devkit(root / DEVKIT)


def scan_tars(root: Path, split: str, on_progress: OnProgress = no_report) -> TarScan:
    """The images of the official tar of a split: train, val, or test, whose images have no class.

    The tar's headers are read once and what they say is kept in the user's cache folder, until
    the size or time of change of the tar or the devkit differs. Raises UserError if a file is
    missing, unreadable or damaged, or if the tar and the devkit do not fit together.
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
    changed_ns = int(state["state"][[2, 4]].max())
    found = scan_once(path, state, changed_ns, scan, on_progress)
    size, mtime_ns = state["state"][1:3].tolist()
    images = TarBytes(str(path), (size, mtime_ns), found["offsets"], found["sizes"])
    return TarScan(path, found["classes"].tolist(), found["counts"], found["names"], images)


def scan_state(path: Path) -> Arrays:
    """What a kept scan of this tar depends on: its size and time of change, and its devkit's."""
    devkit = path.parent / DEVKIT
    kit = stamp_of(devkit) if os.path.lexists(devkit) else (0, 0)
    return {"state": np.array([_FORMAT, *stamp_of(path), *kit], np.int64)}


def _scan_train(path: Path, devkit: Devkit, on_progress: OnProgress) -> Arrays:
    found = read_train_tar(path, on_progress)
    if found.faults:
        raise UserError(
            f"{path} {found.faults[0]}{_more(found.faults)}: {len(found.classes):,} of its "
            f"{len(devkit.wnids):,} classes, {found.num_images:,} images, are whole; "
            + _mend(found.num_images)
        )
    names = [one.name for one in found.classes]
    for these, those, how in ((devkit.wnids, names, "lacks"), (names, devkit.wnids, "has")):
        odd = sorted(set(these) - set(those))
        if odd:
            raise UserError(
                f"{path} {how} {odd[0]}.tar{_more(odd)}, unlike the classes of {DEVKIT}: the two "
                "files do not belong together, download them again"
            )
    counts = [len(one.names) for one in found.images]
    return {
        "classes": np.array(names),
        "counts": np.array(counts, np.int64),
        "names": np.concatenate([one.names for one in found.images]),
        "offsets": np.concatenate([one.offsets for one in found.images]),
        "sizes": np.concatenate([one.sizes for one in found.images]),
    }


def _scan_flat(path: Path, devkit: Devkit, split: str) -> Arrays:
    """The images of the validation or test tar; the former sorted by their labels."""
    with open_tar(path) as file, readable(path):
        found = list_images(file)
    count = len(found.names)
    if found.fault:
        raise UserError(f"{path} {found.fault}: {count:,} of its images are whole; {_mend(count)}")
    if not count:
        raise UserError(f"{path} holds no images: download it again")
    classes, counts = devkit.classes, np.zeros(len(devkit.wnids), np.int64)
    order = np.arange(count)
    if split == "val":
        if count != len(devkit.val_ids):
            raise UserError(
                f"{path} holds {count:,} images but {DEVKIT} labels {len(devkit.val_ids):,}: "
                "the two files do not belong together, download them again"
            )
        labels = devkit.labels_of(found.names)
        if faults := unlabelled(found.names[labels < 0]):
            raise UserError(f"{path} {faults[0]}: the two files do not belong together")
        order = np.argsort(labels, kind="stable")
        counts = np.bincount(labels, minlength=len(counts))
    return {
        "classes": np.array(classes),
        "counts": counts.astype(np.int64),
        "names": found.names[order],
        "offsets": found.offsets[order],
        "sizes": found.sizes[order],
    }


def unlabelled(names: npt.NDArray[np.bytes_]) -> list[str]:
    """What is wrong with a validation tar if it has images of these names; [] of none."""
    if not len(names):
        return []
    return [f"holds {os.fsdecode(names[0])!r} ({len(names):,} such), which {DEVKIT} does not label"]


def _mend(usable: int) -> str:
    save = ", or save these by scripts/prepare_imagenet.py extract --partial" if usable else ""
    return f"download it again{save}"


def _more(things: Sequence[str]) -> str:
    return f" (and {len(things) - 1:,} more)" if len(things) > 1 else ""
