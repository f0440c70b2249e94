"""Scans of data sets, kept in the user's cache folder: they save time and are never needed."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.files import lock, write_atomically

Arrays = dict[str, npt.NDArray[Any]]
Stamp = tuple[int, int, int]  # size, times of change of content and of anything (ctime), ns
OnProgress = Callable[[], None]  # called now and then during a long scan


def no_report() -> None:
    """The OnProgress of a process for which nobody waits."""


# Modification times have a limited resolution. A file that changed this short a time before its
# scan could change again without a new modification time, so such a scan is not kept.
_SETTLED_NS = 2_000_000_000


def stamp(status: os.stat_result) -> Stamp:
    """What tells a changed file or folder from the same one before.

    Copying tools set the time of the content (mtime) back to the original's; nothing sets ctime.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def cache_file(source: Path) -> Path:
    """Where the scan of this folder or file is kept; nothing can be if the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:
        home = Path(os.devnull)
    name = hashlib.sha256(os.fsencode(source)).hexdigest()[:32]
    return home / "rectifiers" / f"index-{name}.npz"


def scan_once(
    source: Path, state: Arrays, *, scan: Callable[[], Arrays], on_progress: OnProgress
) -> Arrays:
    """The result of `scan` for this folder or file, from the cache if it is still valid.

    A kept scan is valid if the source was in the same `state`, which includes "stamps": the
    stamps, [n, 3], of all that was scanned. If several processes ask at once, one of them scans.
    """
    cache = cache_file(source)
    arrays = _recall(cache, state)
    if arrays is not None:
        return arrays
    last_change_ns = int(state["stamps"][:, 1].max())
    if time.time_ns() - last_change_ns <= _SETTLED_NS:
        return scan()
    with _scanning(cache, on_progress):
        arrays = _recall(cache, state)
        if arrays is None:
            arrays = scan()
            keep(cache, **state, **arrays)
    return arrays


def _recall(cache: Path, state: Arrays) -> Arrays | None:
    try:
        with np.load(cache, allow_pickle=False) as kept:
            if all(np.array_equal(kept[name], value) for name, value in state.items()):
                return {name: kept[name] for name in kept.files}
    except Exception:  # absent, or damaged in one of many ways: a new scan repairs it
        pass
    return None


@contextmanager
def _scanning(cache: Path, on_progress: OnProgress) -> Iterator[None]:
    """One process at a time is inside; where no lock can be taken, none waits."""
    with ExitStack() as stack:
        with suppress(OSError):
            cache.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(cache.with_suffix(".lock"), on_wait=on_progress))
        yield


def keep(cache: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write the cache file; does nothing if it cannot be written."""
    with suppress(OSError, UserError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, lambda file: np.savez(file, allow_pickle=False, **arrays))
