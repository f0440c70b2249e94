"""A split kept as files: `<split>/<class>/<image>`, or `<split>/<image>`."""

import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError, reason, refusing
from data.sources.cache import Arrays, OnProgress, no_report, scan_once, stamp

EXTENSIONS = (b".jpg", b".jpeg", b".png", b".bmp", b".webp")  # in either case
EXTENSION_NAMES = b" ".join(EXTENSIONS).decode()
# Images of other formats: they are not used, but counted.
_OTHER_EXTENSIONS = (
    *(b".tif", b".tiff", b".gif", b".jfif", b".jpe", b".jp2", b".j2k", b".jxl", b".avif"),
    *(b".heic", b".heif", b".ppm", b".pgm", b".pbm", b".pnm", b".tga", b".dng", b".raw"),
)
UNFINISHED = ".unfinished"  # marks a split that data/prepare/write.py has not finished
SCAN_THREADS = 16  # network file systems answer slowly but many requests at a time
_DEEPER, _OUTSIDE = "folders inside", "images outside class folders"  # also not used, but counted


@dataclass(frozen=True)
class FolderScan:
    """The N images of a split, in order of class, then of name."""

    classes: list[str]  # the class folders, sorted; []: the images lie in the split's own folder
    counts: npt.NDArray[np.int64]  # images of each class
    names: npt.NDArray[np.bytes_]  # [N]
    left_out: str  # a sentence on files that are not used, if any


def is_image(name: bytes) -> bool:
    """Whether a file of this name counts as an image; a hidden one does not."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(b".")


def refuse_closed(folder: Path) -> None:
    """Raises UserError if the user may not enter the folder; callers find out if it is missing."""
    try:
        os.stat(os.path.join(folder, "."))  # a Path would leave out the dot
    except PermissionError as error:
        raise UserError(
            f"cannot read {folder} ({reason(error)}): it must be a folder that you may enter"
        ) from error
    except OSError:
        pass


def class_folders(folder: Path) -> dict[str, os.stat_result]:
    """Class folder -> its status, in order of name. Raises UserError if one is a broken link."""
    statuses, broken = dict[str, os.stat_result](), list[str]()
    with refusing(OSError, what=f"cannot read {folder}"), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_broken_link(entry):
                broken.append(entry.path)
            elif entry.is_dir():
                statuses[entry.name] = entry.stat()
    _refuse_broken_links(folder, broken)
    return dict(sorted(statuses.items()))


def scan_classes(
    folder: Path, *, refuse_empty: bool, on_progress: OnProgress = no_report
) -> FolderScan:
    """The images in `folder/<class>/`.

    Hidden files are ignored, links are followed. The list is kept in the user's cache folder until
    a folder changes. Raises UserError if there is no class or no image, for broken links, for a
    split that is not fully written (missing images would go unnoticed) and, with refuse_empty, for
    a class without images.
    """
    folders = class_folders(folder)
    _refuse_unfinished(folder)
    if not folders:
        raise UserError(
            f"{folder} has no class folders: images are expected as {folder}/<class>/<image>"
        )
    scan = _cached_scan(folder, folders, on_progress)
    if not len(scan.names):
        raise UserError(f"{folder} has class folders but no image ({EXTENSION_NAMES}) in any")
    empty = [name for name, count in zip(scan.classes, scan.counts, strict=True) if not count]
    if empty and refuse_empty:
        raise UserError(
            f"class folder {folder / empty[0]} has no image ({EXTENSION_NAMES}); {len(empty)} such "
            "in all: fill or remove it"
        )
    return scan


def scan_flat(folder: Path, on_progress: OnProgress = no_report) -> FolderScan:
    """The images in `folder` itself, as scan_classes lists those of classes."""
    _refuse_unfinished(folder)
    scan = _cached_scan(folder, {}, on_progress)
    if not len(scan.names):
        raise UserError(f"{folder} has no image ({EXTENSION_NAMES}) in it, outside of folders")
    return scan


@dataclass(frozen=True)
class Files:
    """The content of a folder, without hidden files."""

    images: npt.NDArray[np.bytes_]  # sorted names
    broken: list[str]  # paths of images that are broken links
    unused: Counter[str]  # kind -> number of files, or of folders


def list_files(folder: Path) -> Files:
    """The content of a folder. Raises UserError if it cannot be read."""
    images, broken, unused = list[bytes](), list[str](), Counter[str]()
    with (
        refusing(OSError, what=f"cannot read {folder}"),
        os.scandir(os.fsencode(folder)) as entries,
    ):
        for entry in entries:
            name, extension = entry.name, os.path.splitext(entry.name.lower())[1]
            if name.startswith(b"."):
                continue
            if is_image(name) and _is_broken_link(entry):
                broken.append(os.fsdecode(entry.path))
            elif is_image(name) and entry.is_file():
                images.append(name)
            elif extension in _OTHER_EXTENSIONS:
                unused[extension.decode()] += 1
            elif entry.is_dir():
                unused[_DEEPER] += 1
    return Files(np.array(sorted(images), np.bytes_), broken, unused)


def _cached_scan(
    folder: Path, classes: dict[str, os.stat_result], on_progress: OnProgress
) -> FolderScan:
    """The images in these class folders or, if there are none, in the folder itself."""
    with refusing(OSError, what=f"cannot read {folder}"):
        statuses = [folder.stat(), *classes.values()]
    scan = partial(_scan, folder, list(classes), on_progress)
    if any(file_system(device).startswith("fuse") for device in {s.st_dev for s in statuses}):
        # Object stores are mounted so, and the stamps of their folders need not change.
        arrays = scan()
    else:
        stamps = np.array([stamp(status) for status in statuses], np.int64)
        state = {"classes": np.array(list(classes), np.str_), "stamps": stamps}
        arrays = scan_once(folder, state, scan=scan, on_progress=on_progress)
    unused = dict(zip(arrays["kinds"].tolist(), arrays["amounts"].tolist(), strict=True))
    return FolderScan(list(classes), arrays["counts"], arrays["names"], left_out(folder, unused))


def _scan(folder: Path, classes: list[str], on_progress: OnProgress) -> Arrays:
    """A scan as the cache keeps it. Raises UserError if images are broken links."""
    inside = list[Files]()
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        for files in pool.map(list_files, [folder / name for name in classes]):
            inside.append(files)
            on_progress()
    own = list_files(folder)
    if inside:
        del own.unused[_DEEPER]
        own.unused[_OUTSIDE] = len(own.images)
    _refuse_broken_links(folder, [path for files in (own, *inside) for path in files.broken])
    unused = sum((files.unused for files in inside), own.unused)
    used = inside or [own]
    return {
        "counts": np.array([len(files.images) for files in used], np.int64),
        "names": np.concatenate([files.images for files in used]),
        "kinds": np.array(sorted(unused), np.str_),
        "amounts": np.array([unused[kind] for kind in sorted(unused)], np.int64),
    }


def left_out(folder: Path, unused: Mapping[str, int]) -> str:
    """A sentence on the files of a folder that are not used, if there are any."""
    if not unused:
        return ""
    amounts = ", ".join(f"{kind} {count:,}" for kind, count in sorted(unused.items()))
    return f"not used in {folder}: {amounts} (images are {EXTENSION_NAMES})"


def file_system(device: int) -> str:
    """The type of the file system on this device, such as nfs4 or fuse.s3fs; "": unknown."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            if line.split()[2] == number:
                return line.rpartition(" - ")[2].split()[0]
    return ""


def _is_broken_link(entry: "os.DirEntry[str] | os.DirEntry[bytes]") -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _refuse_broken_links(folder: Path, broken: list[str]) -> None:
    if broken:
        raise UserError(
            f"{folder} has {len(broken):,} broken links, such as {broken[0]} to "
            f"{os.readlink(broken[0])} (missing, or not readable): is its disk mounted?"
        )


def _refuse_unfinished(folder: Path) -> None:
    if (folder / UNFINISHED).exists():
        raise UserError(
            f"{folder} is not whole, scripts/prepare_imagenet.py was interrupted: type the same "
            "command again"
        )
