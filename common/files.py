"""Files: written whole or not at all, locked by one process, read line by line."""

import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import UserError, reason

_LOOK_EVERY = 0.1  # seconds between two attempts to take a lock


def write_atomically(
    path: Path, write: Any, *, keep_as: Path | None = None, also: Path | None = None
) -> None:
    """Call write(file) on a temporary file beside `path`, then rename it to `path`.

    Readers find the old file or the new one, never a part, whenever this process is killed. If
    given, `also` becomes a second name of the new file before it is at `path`, and `keep_as` a
    second name of the old file once the new one is whole. Raises UserError, with the old file
    untouched, if the disk is full or read-only.
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
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch's RuntimeError speaks of positions in the file; what it met is its context.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(
            f"could not write {path} ({reason(cause)}); what was there before is kept"
        ) from error


def try_to_write(path: Path) -> None:
    """Raises OSError if no file could be written at `path` now; leaves nothing behind."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
        pass


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


@contextmanager
def lock(
    path: Path, *, busy: str = "", on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Lock `path`, a folder or a lock file, while the context lasts or until the process dies.

    If another process holds it, calls on_wait now and then until it is free or, without on_wait,
    raises UserError(busy). On a file system without locks it does nothing but, without on_wait, say
    so. Raises OSError if the file cannot be opened.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        _take(handle, path, busy, on_wait)
        yield
    finally:
        os.close(handle)


def _take(handle: int, path: Path, busy: str, on_wait: Callable[[], None] | None) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is None:
                raise UserError(busy) from None
            on_wait()
            time.sleep(_LOOK_EVERY)
        except OSError as error:  # a file system without locks
            if on_wait is None:
                folder = path if path.is_dir() else path.parent
                text = f"{folder} is not guarded against a second process: its disk has no locks"
                print(f"{text} ({reason(error)})", file=sys.stderr, flush=True)
            return None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, one a line; a line cut short by a kill is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
