"""Writes images into the folder layout, `OUT/<split>/<class>/*` and `OUT/test/*`.

A class is written into a hidden folder, which data/sources/folders.py does not see, and renamed
once it is complete: every visible folder is finished. Until all classes of a split are, a marker
file makes the split unusable as a data set. File names are those that data/sources/tars.py lists:
without folders, of regular files.
"""

import math
import os
import shutil
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import numpy as np
from tqdm import tqdm

from common.errors import UserError, reason, refusing
from common.files import lock
from data.sources.folders import UNFINISHED
from data.sources.index import ImageIndex, scan_folder
from data.sources.tars import readable

WRITERS = 16  # threads: network file systems answer slowly but many requests at a time
_BLOCK = 4096  # bytes; on disk a file takes a multiple of it


def subset_index(
    root: Path,
    split: str,
    *,
    classes: int | None = None,
    images: int | None = None,
    per_class: int | None = None,
) -> ImageIndex:
    """The first images of the first classes of a split, of a data set in any layout.

    classes: how many; None: all. per_class: images of each class. images: images in all, spread
    evenly: some classes get one more than the others. A class with fewer images gives all it has.
    Raises UserError if there are fewer classes, or if `images` is less than one for each class.
    """
    index = scan_folder(root, split)
    if classes is not None and classes > len(index.classes):
        raise UserError(
            f"{index.folder} has {len(index.classes):,} classes, not --classes {classes}"
        )
    count = classes or len(index.classes)
    if images is not None and images < count:
        raise UserError(f"--images {images} is less than one for each of {count:,} classes")
    wanted = [per_class if per_class is not None else len(index)] * count
    if images is not None:
        wanted = [images // count + (label < images % count) for label in range(count)]
    rows = zip(index.rows_by_class(), wanted, strict=False)
    chosen = index.only(np.concatenate([np.array(part[:want], np.int64) for part, want in rows]))
    return replace(chosen, classes=index.classes[:count])


@dataclass(frozen=True)
class _Folder:
    """A folder to write: some images of an index."""

    path: Path
    index: ImageIndex
    rows: range

    @property
    def part(self) -> Path:
        """Where it is written until it is complete."""
        return self.path.with_name(f".{self.path.name}.part")

    def sizes(self) -> dict[str, int]:
        """File name -> bytes."""
        names = [os.fsdecode(self.index.names[i]) for i in self.rows]
        if self.index.tar:
            return dict(zip(names, self.index.tar.sizes[self.rows].tolist(), strict=True))
        sizes = {}
        for name, i in zip(names, self.rows, strict=True):
            path = Path(self.index.path(i))
            with readable(path):
                sizes[name] = path.stat().st_size
        return sizes

    def is_finished(self) -> bool:
        """Whether it holds its files and no others, hidden ones apart.

        Comparing sizes also catches files that were lost when a machine crashed.
        """
        if not self.path.is_dir():
            return False
        with os.scandir(self.path) as entries:
            sizes = {e.name: e.stat().st_size for e in entries if not e.name.startswith(".")}
        return sizes == self.sizes()


@dataclass(frozen=True)
class Written:
    """What was done for a split."""

    num_images: int  # written now
    num_folders: int  # written now
    num_finished: int  # folders that were already there
    left_alone: list[str]  # paths that should not exist, or differ from what would be written


def write_splits(out: Path, splits: dict[str, ImageIndex], num_workers: int) -> dict[str, Written]:
    """Write the images of each split into `out`, class by class, in `num_workers` threads.

    Nothing is overwritten: a finished class is not written again, and a class that differs is left
    alone and reported. Raises UserError if the disk is too small, or if a file cannot be read or
    written; the same call then continues where it stopped.
    """
    folders = {split: _folders(out, split, index) for split, index in splits.items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with lock(out, busy=f"another process is writing into {out}: wait for it"):
            return _write_missing(out, folders, num_workers)
    except OSError as error:
        path = error.filename or out
        raise UserError(
            f"cannot write {path} ({reason(error)}): the same command continues where it stopped"
        ) from error


def _write_missing(
    out: Path, folders: dict[str, list[_Folder]], num_workers: int
) -> dict[str, Written]:
    written, missing = dict[str, Written](), list[_Folder]()
    for split, wanted in folders.items():
        new = [folder for folder in wanted if not os.path.lexists(folder.path)]
        old = [folder for folder in wanted if os.path.lexists(folder.path)]
        left_alone = _differing(old, num_workers) + _unexpected(out / split, wanted)
        num_images = sum(len(folder.rows) for folder in new)
        written[split] = Written(num_images, len(new), len(old), left_alone)
        missing += new
    for folder in missing:
        if os.path.lexists(folder.part):
            shutil.rmtree(folder.part)
    _refuse_full_disk(out, missing)
    for split_folder in {folder.path.parent for folder in missing} - {out}:
        split_folder.mkdir(exist_ok=True)
        (split_folder / UNFINISHED).touch()
    _write_all(missing, num_workers)
    for split in folders:  # also if an earlier call was killed right after its last class
        (out / split / UNFINISHED).unlink(missing_ok=True)
    return written


def _folders(out: Path, split: str, index: ImageIndex) -> list[_Folder]:
    if split == "test":
        return [_Folder(out / split, index, range(len(index)))]
    for name in index.classes:  # from the devkit or the tar, which may hold anything
        if name != os.path.basename(name) or name.startswith(".") or not name:
            raise UserError(f"{index.folder} has a class {name!r}, which cannot name a folder")
    rows_by_class = zip(index.classes, index.rows_by_class(), strict=True)
    return [_Folder(out / split / name, index, rows) for name, rows in rows_by_class if rows]


def _differing(folders: list[_Folder], num_workers: int) -> list[str]:
    """The paths of the folders that are not finished."""
    with ThreadPoolExecutor(num_workers) as pool:
        finished = pool.map(_Folder.is_finished, folders)
        bar = tqdm(finished, "comparing", len(folders), unit="class", disable=None)
        return [str(folder.path) for folder, done in zip(folders, bar, strict=True) if not done]


def _unexpected(split_folder: Path, wanted: list[_Folder]) -> list[str]:
    """Paths beside the class folders: they would be taken for classes, or are no folders."""
    if split_folder in [folder.path for folder in wanted] or not split_folder.is_dir():
        return []
    names = {folder.path.name for folder in wanted}
    return [
        str(split_folder / name)
        for name in sorted(os.listdir(split_folder))
        if name not in names and not name.startswith(".")
    ]


def _refuse_full_disk(out: Path, folders: list[_Folder]) -> None:
    sizes = (size for folder in folders for size in folder.sizes().values())
    needed = sum(math.ceil(size / _BLOCK) * _BLOCK for size in sizes)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{out} needs room for {needed / 1e9:,.1f} GB more, {free / 1e9:,.1f} GB are free"
        )


def _write_all(folders: list[_Folder], num_workers: int) -> None:
    stop, total = Event(), sum(len(folder.rows) for folder in folders)
    with (
        tqdm(total=total, desc="writing", unit="img", disable=None) as bar,
        ThreadPoolExecutor(num_workers) as pool,
    ):
        try:
            futures = [pool.submit(_write, folder, bar, stop) for folder in folders]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            stop.set()


def _write(folder: _Folder, bar: tqdm, stop: Event) -> None:
    """Write one folder; it stays unfinished if `stop` is set."""
    if stop.is_set():
        return
    folder.part.mkdir()
    for i in folder.rows:
        if stop.is_set():
            return
        with refusing(OSError, what=f"cannot read image {folder.index.path(i)}"):
            data = folder.index.read(i)
        with open(folder.part / os.fsdecode(folder.index.names[i]), "xb") as file:
            file.write(data)
        with bar.get_lock():
            bar.update()
    os.rename(folder.part, folder.path)
