"""Checkpoints: written whole or not at all, and read back with suspicion."""

import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from common.errors import UserError
from common.files import link, write_atomically

if TYPE_CHECKING:
    from configs.schema import DataConfig

FORMAT = 2  # raised when an older file would be taken for another network or run

_UNREADABLE = (
    *(RuntimeError, OSError, EOFError, ValueError, KeyError, NotImplementedError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error),
)


class DamagedError(UserError):
    """A file that is there and cannot be read."""


def save_checkpoint(
    path: Path, state: dict[str, Any], *, epoch: int | None = None, keep: int = 0
) -> None:
    """Write a checkpoint atomically; raises UserError where it cannot be written.

    The last.pt that it replaces stays as previous.pt. One that ends an epoch is also kept under
    its name, epoch-EEE.pt, and all but the last `keep` such files are dropped.
    """
    content = {"format": FORMAT, **state}
    previous = path.with_name("previous.pt") if path.name == "last.pt" else None
    ended = None if epoch is None or keep <= 0 else path.with_name(f"epoch-{epoch:03d}.pt")
    write_atomically(path, lambda file: torch.save(content, file), keep_as=previous, also=ended)
    if ended:
        for old in sorted(path.parent.glob("epoch-*.pt"))[:-keep]:
            old.unlink()


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
        raise UserError(f"{path} is not a checkpoint of this version of the project")
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


def refuse_other_data(
    path: Path, state: dict[str, Any], images: list[str], mean: Tensor, data: "DataConfig"
) -> None:
    """Raises UserError if a checkpoint was trained on other images, or another mean, than these."""
    same_mean = torch.equal(state["mean"], mean)
    if state["images"] != images or not same_mean:
        what = "images" if same_mean else "mean"
        raise UserError(
            f"{path} was trained with other {what} than {data.root} and data.mean={data.mean} "
            "give now: give name=... for a new run"
        )


def use_previous(origin: Path) -> None:
    """Where a run goes on from previous.pt, drop the damaged last.pt for it.

    Else the next save would keep the damaged one as previous.pt.
    """
    if origin.name == "previous.pt":
        link(origin, origin.with_name("last.pt"))
