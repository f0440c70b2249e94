"""What a scan found, kept in the user's cache folder: it saves time and is never needed."""

import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

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


def recall(cache: Path | None, known: Arrays) -> Arrays | None:
    """The arrays kept in the cache file, if those in `known` are among them and equal."""
    try:
        with np.load(cache or os.devnull, allow_pickle=False) as kept:
            if all(np.array_equal(kept[name], value) for name, value in known.items()):
                return {name: kept[name] for name in kept.files}
    except Exception:  # absent, or damaged in one of many ways: a scan mends them all
        pass
    return None


def is_settled(mtime_ns: int) -> bool:
    """Whether something last changed at this time would show another change by its time."""
    return time.time_ns() - mtime_ns > _SETTLED_NS


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
