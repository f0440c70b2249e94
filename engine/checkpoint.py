"""Checkpoints: written whole or not at all, and read back with suspicion."""

import os
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from configs.errors import UserError

FORMAT = 1

_UNREADABLE = (
    *(RuntimeError, OSError, EOFError, ValueError, KeyError, NotImplementedError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
)


class DamagedError(UserError):
    """A file that is there and cannot be read."""


def write_atomically(path: Path, write: Any) -> None:
    """Call write(file) on a temporary file beside `path`, then put it in the place of `path`.

    A reader, or a process killed at any moment, finds the old file or the new one, never a part.
    Raises UserError, with the old file untouched, where the disk refuses (full, read-only).
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"could not write {path} ({error}); what was there before is kept"
        ) from error


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically; raises UserError where it cannot be written."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors on the CPU; raises UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch's format; torch.load checks no checksums
            if (record := archive.testzip()) is not None:
                raise DamagedError(f"{path} is damaged: the checksum of {record} does not fit")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedError(f"{path} is damaged or not a checkpoint ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project")
    return state


def load_latest(
    folder: Path, on_event: Callable[[str], None]
) -> tuple[Path, dict[str, Any] | None]:
    """The content of last.pt; if it is damaged, of previous.pt, and on_event is told.

    None where there is none. Raises UserError where there is nothing undamaged to go on from.
    """
    last, previous = folder / "last.pt", folder / "previous.pt"
    if not last.exists():
        return last, None
    try:
        return last, load_checkpoint(last)
    except DamagedError as error:
        if not previous.exists():
            raise
        state = load_checkpoint(previous)
        on_event(f"{error}; {previous} is used")
        return previous, state


def keep_previous(folder: Path) -> None:
    """Keep last.pt, which is about to be replaced, as previous.pt."""
    if (folder / "last.pt").exists():
        _link(folder / "last.pt", folder / "previous.pt")


def _link(path: Path, name: Path) -> None:
    """Give a file a second name, atomically: files here are replaced, never rewritten."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)


def keep_epoch(folder: Path, epoch: int, keep: int) -> None:
    """Keep last.pt under the name of the epoch that it ends, and drop all but `keep` such files."""
    if keep <= 0:
        return
    _link(folder / "last.pt", folder / f"epoch-{epoch:03d}.pt")
    for old in sorted(folder.glob("epoch-*.pt"))[:-keep]:
        old.unlink()
