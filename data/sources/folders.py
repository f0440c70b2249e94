"""A split kept as a folder of class folders: `<split>/<class>/<image>`."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError, reason
from data.sources.cache import Arrays, OnProgress, no_report, scan_once

EXTENSIONS = (b".jpg", b".jpeg", b".png", b".bmp", b".webp")  # in either case
EXTENSION_NAMES = " ".join(extension.decode() for extension in EXTENSIONS)
UNFINISHED = ".unfinished"  # marks a split that data/prepare/write.py has not finished
SCAN_THREADS = 16  # network file systems answer slowly but many requests at a time


def is_image(name: bytes) -> bool:
    """Whether a file of this name counts as an image; hidden files do not."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(b".")


def refuse_closed(folder: Path) -> None:
    """Raises UserError if the user may not enter the folder."""
    try:
        os.stat(os.path.join(folder, "."))  # a Path would leave out the dot
    except PermissionError as error:
        raise UserError(
            f"cannot read {folder} ({reason(error)}): it must be a folder that you may enter"
        ) from error
    except OSError:  # missing, or not a folder: the caller says so
        pass


def class_folders(folder: Path) -> dict[str, int]:
    """Class folder -> its modification time in ns, in order of name."""
    try:
        with os.scandir(folder) as entries:
            times = {
                entry.name: entry.stat().st_mtime_ns
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir()
            }
    except OSError as error:
        raise UserError(f"cannot read {folder}: {reason(error)}") from error
    return dict(sorted(times.items()))


def list_classes(
    folder: Path, is_train: bool, on_progress: OnProgress = no_report
) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.bytes_]]:
    """Class folders in order of name, the number of images in each, and all their file names.

    Hidden files, other files and deeper folders are ignored, links are followed. The scan is kept
    in the user's cache folder until a class folder changes. Raises UserError if there is no class
    or no image, for a training class without images, and for a split that is not fully written:
    missing validation images would go unnoticed.
    """
    times = class_folders(folder)
    if (folder / UNFINISHED).exists():
        raise UserError(
            f"{folder} is not whole, scripts/prepare_imagenet.py was interrupted: type the same "
            "command again"
        )
    if not times:
        raise UserError(
            f"{folder} has no class folders: images are expected as {folder}/<class>/<image>"
        )
    classes = list(times)
    counts, names = _cached_scan(folder, classes, np.array(list(times.values())), on_progress)
    if not len(names):
        raise UserError(f"{folder} has class folders but no image ({EXTENSION_NAMES}) in any")
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty and is_train:
        raise UserError(
            f"class folder {folder / empty[0]} has no image ({EXTENSION_NAMES}); {len(empty)} such "
            "in all: fill or remove it"
        )
    return classes, counts, names


def images_in(folder: Path) -> npt.NDArray[np.bytes_]:
    """Sorted file names of the images in a folder."""
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            names = [entry.name for entry in entries if is_image(entry.name) and entry.is_file()]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {reason(error)}") from error
    return np.array(sorted(names), np.bytes_)


def _cached_scan(
    folder: Path, classes: list[str], times: npt.NDArray[np.int64], on_progress: OnProgress
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bytes_]]:
    """Number of images in each class folder, and all their names."""

    def scan() -> Arrays:
        names_by_class = []
        with ThreadPoolExecutor(SCAN_THREADS) as pool:
            for names in pool.map(images_in, [folder / name for name in classes]):
                names_by_class.append(names)
                on_progress()
        counts = np.array([len(names) for names in names_by_class], np.int64)
        return {"counts": counts, "names": np.concatenate(names_by_class)}

    state = {"classes": np.array(classes), "times": times}
    changed_ns = int(times.max())
    arrays = scan_once(folder, state, changed_ns=changed_ns, scan=scan, on_progress=on_progress)
    return arrays["counts"], arrays["names"]
