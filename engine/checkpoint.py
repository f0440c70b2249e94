"""Checkpoints: written whole or not at all, and read back with suspicion."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from configs.errors import UserError

FORMAT = 1


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
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged or not a checkpoint ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project")
    return state


def keep_epoch(folder: Path, epoch: int, keep: int) -> None:
    """Keep last.pt under the name of the epoch that it ends, and drop all but `keep` such files."""
    if keep <= 0:
        return
    kept = folder / f"epoch-{epoch:03d}.pt"
    kept.unlink(missing_ok=True)
    os.link(folder / "last.pt", kept)  # last.pt is replaced, never rewritten: a link is a copy
    for old in sorted(folder.glob("epoch-*.pt"))[:-keep]:
        old.unlink()
