"""Images written into the folder layout, `OUT/<split>/<class>/*` and `OUT/test/*`.

A class is written into a hidden folder beside its place, which data/sources/folders.py does not
see, and takes its place once it is whole: a folder that is there is finished. Until all classes of
a split are, a file in it says so, and the split is refused as a data set. Names are those that
data/sources/tars.py lists, without folders, of regular files.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from tqdm import tqdm

from common.errors import UserError, reason
from common.files import lock
from data.prepare.contents import rows_of_classes
from data.sources.folders import UNFINISHED
from data.sources.index import ImageIndex
from data.sources.tars import readable

WRITERS = 16  # threads: network file systems answer slowly but many at a time
_BLOCK = 4096  # what a file takes of a disk is a multiple of it


@dataclass(frozen=True)
class _Folder:
    """A folder to be written: some images of an index."""

    path: Path
    index: ImageIndex
    rows: range

    @property
    def part(self) -> Path:
        """Where it is written."""
        return self.path.with_name(f".{self.path.name}.part")

    def sizes(self) -> dict[str, int]:
        """File name -> bytes."""
        return {os.fsdecode(self.index.names[i]): self._size(i) for i in self.rows}

    def is_finished(self) -> bool:
        """Whether all of its files are there with their sizes, and no others but hidden ones.

        Sizes also tell of files that were lost when a machine went down.
        """
        if not self.path.is_dir():
            return False
        with os.scandir(self.path) as entries:
            found = {e.name: e.stat().st_size for e in entries if not e.name.startswith(".")}
        return found == self.sizes()

    def _size(self, i: int) -> int:
        if self.index.tar:
            return int(self.index.tar.sizes[i])
        path = Path(self.index.path(i))
        with readable(path):
            return path.stat().st_size


@dataclass(frozen=True)
class Written:
    """What became of a split."""

    num_images: int  # written now
    num_folders: int  # written now
    num_finished: int  # folders that were there
    left_alone: list[str]  # paths of what is there and should not be, or should be different


def write_splits(out: Path, splits: dict[str, ImageIndex], workers: int) -> dict[str, Written]:
    """Write the images of each split into `out`, class by class, many at a time.

    What is there is kept: a finished class is not written again, and one that differs is left
    alone and reported. Raises UserError if there is no room, or if a file cannot be read or
    written; the same call then goes on where it stopped.
    """
    folders = {split: _folders(out, split, index) for split, index in splits.items()}
    busy = f"another process is writing into {out}: wait for it"
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with _writing(out), lock(out, busy=busy):
        written, missing = dict[str, Written](), list[_Folder]()
        for split, wanted in folders.items():
            new = [one for one in wanted if not os.path.lexists(one.path)]
            there = [one for one in wanted if os.path.lexists(one.path)]
            odd = _differing(there, workers) + _unexpected(out / split, wanted)
            images = sum(len(one.rows) for one in new)
            written[split] = Written(images, len(new), len(there), odd)
            missing += new
        for one in missing:
            if os.path.lexists(one.part):
                shutil.rmtree(one.part)
        _refuse_full_disk(out, missing)
        marks = {one.path.parent / UNFINISHED for one in missing if one.path.parent != out}
        for mark in marks:
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
        _write_all(missing, workers)
        for split in folders:  # also those that an earlier call has left with the last class there
            (out / split / UNFINISHED).unlink(missing_ok=True)
    return written


def _folders(out: Path, split: str, index: ImageIndex) -> list[_Folder]:
    if split == "test":
        return [_Folder(out / split, index, range(len(index)))]
    for name in index.classes:  # from the devkit, or a member of a tar
        if name != os.path.basename(name) or name.startswith(".") or not name:
            raise UserError(f"{index.folder} has a class {name!r}, which cannot name a folder")
    rows = rows_of_classes(index)
    every = zip(index.classes, rows, strict=True)
    return [_Folder(out / split / name, index, part) for name, part in every if part]


def _differing(folders: list[_Folder], workers: int) -> list[str]:
    """Those that are not finished."""
    with ThreadPoolExecutor(workers) as pool:
        finished = pool.map(_Folder.is_finished, folders)
        bar = tqdm(finished, "what is there", len(folders), unit="class", disable=None)
        return [str(one.path) for one, whole in zip(folders, bar, strict=True) if not whole]


def _unexpected(folder: Path, wanted: list[_Folder]) -> list[str]:
    """What else is beside the class folders; it would be taken for a class, or is no folder."""
    if folder in [one.path for one in wanted] or not folder.is_dir():
        return []
    names = {one.path.name for one in wanted}
    return [
        str(folder / name)
        for name in sorted(os.listdir(folder))
        if name not in names and not name.startswith(".")
    ]


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn an OSError into a UserError."""
    try:
        yield
    except OSError as error:
        where = error.filename or out
        raise UserError(
            f"cannot write {where} ({reason(error)}): the same command goes on where it stopped"
        ) from error


def _refuse_full_disk(out: Path, folders: list[_Folder]) -> None:
    needed = sum(-(-size // _BLOCK) * _BLOCK for one in folders for size in one.sizes().values())
    files, disk = sum(len(one.rows) for one in folders), os.statvfs(out)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise UserError(
            f"{out} needs room for {needed / 1e9:,.1f} GB more, {free / 1e9:,.1f} GB are free"
        )
    if disk.f_files and files > disk.f_favail:  # where it is 0, files are not limited
        raise UserError(
            f"{out} needs room for {files:,} more files, its file system for {disk.f_favail:,}"
        )


def _write_all(folders: list[_Folder], workers: int) -> None:
    stop, total = Event(), sum(len(one.rows) for one in folders)
    for parent in {one.path.parent for one in folders}:
        parent.mkdir(parents=True, exist_ok=True)
    with (
        tqdm(total=total, desc="writing", unit="img", disable=None) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            written = [pool.submit(_write, folder, bar, stop) for folder in folders]
            for future in wait(written, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            stop.set()


def _write(folder: _Folder, bar: tqdm, stop: Event) -> None:
    """Write one folder; left unfinished if `stop` is set."""
    if stop.is_set():
        return
    folder.part.mkdir()
    for i in folder.rows:
        if stop.is_set():
            return
        try:
            data = folder.index.read(i)
        except OSError as error:
            raise UserError(
                f"cannot read image {folder.index.path(i)} ({reason(error)})"
            ) from error
        with open(folder.part / os.fsdecode(folder.index.names[i]), "xb") as file:
            file.write(data)
        with bar.get_lock():
            bar.update()
    os.rename(folder.part, folder.path)
