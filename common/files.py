"""Files: written whole or not at all, locked by one process at a time, read line by line."""

import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import UserError, reason

_RETRY_INTERVAL = 0.1  # seconds between two attempts to take a lock


def write_atomically(
    path: Path, write: Any, *, keep_as: Path | None = None, also: Path | None = None
) -> None:
    """Call write(file) on a temporary file beside `path`, then rename it to `path`.

    Whenever this process is killed, readers find the old file or the new one, never a part. If
    given, `also` becomes a second name of the new file before it gets the name `path`, and
    `keep_as` a second name of the old file once the new one is complete. If the disk is full or
    read-only, raises UserError and leaves the old file untouched.
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
        # torch's RuntimeError speaks of positions in the file; its context has the cause.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise UserError(
            f"could not write {path} ({reason(cause)}); what was there before is kept"
        ) from error


def try_to_write(path: Path) -> None:
    """Raises OSError if a file cannot be written at `path`; leaves nothing behind."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
        pass


def link(path: Path, name: Path) -> None:
    """Give a file a second name, atomically. It may be a copy: our files are never rewritten."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)
    temporary.unlink(missing_ok=True)  # os.replace does nothing if both are the same file


@contextmanager
def lock(
    path: Path, *, busy: str = "", on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Lock `path`, a folder or a lock file, while the context lasts or until the process dies.

    If another process holds it, raises UserError(busy) or, if on_wait is given, calls that now and
    then until the lock is free. On a file system without locks it does nothing but say so, and with
    on_wait not even that. Raises OSError if the file cannot be opened.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        while not _try_to_lock(handle, path, tell=on_wait is None):
            if on_wait is None:
                raise UserError(busy)
            on_wait()
            time.sleep(_RETRY_INTERVAL)
        yield
    finally:
        os.close(handle)


def _try_to_lock(handle: int, path: Path, tell: bool) -> bool:
    """Take the lock; False if another process has it. tell: say so if the disk has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        if tell:
            folder = path if path.is_dir() else path.parent
            text = f"{folder} is not guarded against a second process: its disk has no locks"
            print(f"{text} ({reason(error)})", file=sys.stderr, flush=True)
    return True


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file, one a line, without lines that a kill has cut short."""
    objects = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            objects.append(json.loads(line))
    return objects
