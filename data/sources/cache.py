"""What a scan found, kept in the user's cache folder: it saves time and is never needed."""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.files import lock

Arrays = dict[str, npt.NDArray[Any]]
OnProgress = Callable[[], None]  # called now and then while a long scan goes on


def no_report() -> None:
    """The OnProgress of a process for which nobody waits."""


# A file's time of change has a resolution. What changed this short a time before it was scanned
# could change again without its time showing it, so that such a scan is not kept.
_SETTLED_NS = 2_000_000_000


def cache_file(source: Path) -> Path | None:
    """Where the scan of this folder or file is kept; None where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:
        return None
    name = hashlib.sha256(os.fsencode(source)).hexdigest()[:32]
    return home / "rectifiers" / f"index-{name}.npz"


def scan_once(
    source: Path,
    known: Arrays,
    changed_ns: int,
    scan: Callable[[], Arrays],
    on_progress: OnProgress,
) -> Arrays:
    """What `scan` finds in this folder or file, from the cache where that holds what it found.

    A kept scan counts if the arrays in `known` are among its own and equal. changed_ns: when the
    source last changed. Of several processes that ask at once, one scans.
    """
    cache = cache_file(source)
    found = _recall(cache, known)
    if found is not None:
        return found
    if cache is None or time.time_ns() - changed_ns <= _SETTLED_NS:
        return scan()
    with _scanning(cache, on_progress):
        found = _recall(cache, known)
        if found is None:
            found = scan()
            keep(cache, **known, **found)
    return found


def _recall(cache: Path | None, known: Arrays) -> Arrays | None:
    try:
        with np.load(cache or os.devnull, allow_pickle=False) as kept:
            if all(np.array_equal(kept[name], value) for name, value in known.items()):
                return {name: kept[name] for name in kept.files}
    except Exception:  # absent, or damaged in one of many ways: a scan mends them all
        pass
    return None


@contextmanager
def _scanning(cache: Path, on_progress: OnProgress) -> Iterator[None]:
    """While one process is inside, others wait; where locks are not to be had, they do not."""
    with ExitStack() as stack:
        with suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(cache.with_suffix(".lock"), on_wait=on_progress))
        yield


def keep(cache: Path | None, **arrays: npt.NDArray[Any]) -> None:
    """Write the cache file in one step. Where it cannot be written, it is not."""
    if cache is None:
        return
    part = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=cache.parent, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(part, cache)
    except OSError:
        if part is not None:
            Path(part).unlink(missing_ok=True)
