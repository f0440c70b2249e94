"""Files written whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import Any

from common.errors import UserError


def write_atomically(
    path: Path, write: Any, *, keep_as: Path | None = None, also: Path | None = None
) -> None:
    """Call write(file) on a temporary file beside `path`, then put it in the place of `path`.

    A reader, or a process killed at any moment, finds the old file or the new one, never a part.
    If given, `also` is a second name of the new file, there before it is at `path`, and `keep_as`
    one of the old file, which takes it only once the new file is whole. Raises UserError, with the
    old file untouched, where the disk refuses (full, read-only).
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if also:
            link(temporary, also)
        if keep_as and path.exists():
            link(path, keep_as)
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


def link(path: Path, name: Path) -> None:
    """Give a file a second name, atomically: files here are replaced, never rewritten."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)
    temporary.unlink(missing_ok=True)  # replacing one name of a file by another does nothing
