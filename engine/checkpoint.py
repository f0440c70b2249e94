"""Checkpoints: written whole or not at all, in the background, and checked when read back."""

import hashlib
import pickle
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor

from common.errors import UserError, refusing
from common.files import link, write_atomically
from engine.optim import OptimizerState

if TYPE_CHECKING:
    from configs.schema import DataConfig
    from configs.store import PlainConfig

FORMAT = 3  # raised when an older file would load as another network or run

_UNREADABLE = (  # what torch and zipfile raise on a damaged file
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


class DamagedError(UserError):
    """A checkpoint exists but cannot be read."""


class State(TypedDict):
    """What a checkpoint holds, the same for any number of processes."""

    config: "PlainConfig"
    classes: list[str]
    images: list[str]  # fingerprints of the training and the validation images
    mean: Tensor
    progress: dict[str, Any]  # engine.progress.Progress
    network: dict[str, Tensor]
    optimizer: NotRequired[OptimizerState]  # not in best.pt
    scaler: NotRequired[dict[str, object]]  # of fp16's gradient scaler; not in best.pt


def save_checkpoint(path: Path, state: State, *, epoch: int | None = None, keep: int = 0) -> None:
    """Write a checkpoint atomically; raises UserError where it cannot be written.

    The last.pt that it replaces stays as previous.pt. If it ends `epoch` and keep > 0, it is also
    kept as epoch-EEE.pt, and all but the last `keep` of these are deleted.
    """
    content = {"format": FORMAT, **state}
    previous = path.with_name("previous.pt") if path.name == "last.pt" else None
    kept = path.with_name(f"epoch-{epoch:03d}.pt") if epoch is not None and keep > 0 else None
    write_atomically(path, lambda file: torch.save(content, file), keep_as=previous, also=kept)
    if kept:
        for old in sorted(path.parent.glob("epoch-*.pt"))[:-keep]:
            old.unlink()


def load_checkpoint(path: Path) -> State:
    """A checkpoint's content, tensors on the CPU; raises UserError if it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not verify its checksums
            if (record := archive.testzip()) is not None:
                raise DamagedError(f"{path} is damaged: the checksum of {record} does not fit")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedError(f"{path} is damaged or not a checkpoint ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version of the project")
    return cast(State, state)


def fingerprint(path: Path) -> str:
    """Hex SHA-256 of the checksums of a checkpoint's records; a copy has the same one.

    Raises UserError if the file is missing or damaged.
    """
    kinds = (OSError, zipfile.BadZipFile)
    with refusing(*kinds, what=f"cannot read {path}"), zipfile.ZipFile(path) as archive:
        records = [(info.filename, info.file_size, info.CRC) for info in archive.infolist()]
    return hashlib.sha256(repr(records).encode()).hexdigest()


def load_latest(folder: Path, on_event: Callable[[str], None]) -> tuple[Path, State | None]:
    """Path and content of last.pt; if it is damaged, of previous.pt, with a call of on_event.

    The content is None if there is no checkpoint. Raises UserError if both are damaged.
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
    path: Path, state: State, *, images: list[str], mean: Tensor, data: "DataConfig"
) -> None:
    """Raises UserError if a checkpoint was trained with other images, or another mean."""
    same_mean = torch.equal(state["mean"], mean)
    if state["images"] != images or not same_mean:
        differing = "images" if same_mean else "mean"
        raise UserError(
            f"{path} was trained with other {differing} than {data.root} and data.mean={data.mean} "
            "give now: give name=... for a new run"
        )


def use_previous(origin: Path) -> None:
    """If the run resumed from previous.pt, replace the damaged last.pt by it.

    Otherwise the next save would keep the damaged file as previous.pt.
    """
    if origin.name == "previous.pt":
        link(origin, origin.with_name("last.pt"))


Write = Callable[[State], None]  # writes a state to the disk, or raises


class Writer:
    """checkpoint.asynchronous=false: the loop waits for the disk. A context manager."""

    def save(self, state: State, write: Write) -> None:
        """Call `write` with the state as it is now, after all earlier writes."""
        write(state)

    def check(self) -> None:
        """Raise the error of a write that has failed; does not wait."""

    def wait(self) -> None:
        """Wait until everything is on the disk; raises the error of a failed write."""

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait, even after an error; if the last write fails too, join both into one sentence."""
        try:
            self.wait()
        except UserError as write_error:
            if isinstance(error, UserError) and error is not write_error:
                raise UserError(f"{error}; {write_error}") from error
            raise


class BackgroundWriter(Writer):
    """A thread writes; the loop goes on as soon as the tensors are copied.

    There is one copy, whose memory is reused, so a save waits until the one before is on the disk.
    For a GPU, the memory is page-locked and the copy is queued behind the GPU's other work: the
    next update of the weights waits for the copy, the loop does not.

    After a failed write every call raises its error: no run continues without its checkpoints.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._write: Future[None] | None = None
        self._memory: dict[str, Tensor] = {}

    def save(self, state: State, write: Write) -> None:
        self.wait()
        copied = torch.cuda.Event() if torch.cuda.is_initialized() else None
        copy = self._copy(state, "")
        if copied:
            copied.record()

        def write_copy() -> None:
            if copied:
                copied.synchronize()
            write(copy)

        self._write = self._thread.submit(write_copy)

    def check(self) -> None:
        if self._write and self._write.done():
            self._write.result()

    def wait(self) -> None:
        if self._write:
            self._write.result()

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._thread.shutdown()

    def _copy(self, value: Any, path: str) -> Any:
        """The same nested value, with its tensors copied; `path` names the memory of each."""
        if isinstance(value, dict):
            return {key: self._copy(part, f"{path}/{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [self._copy(part, f"{path}/{i}") for i, part in enumerate(value)]
        if not isinstance(value, Tensor):
            return value
        memory = self._memory.get(path)
        if memory is None or _layout(memory) != _layout(value):
            memory = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._memory[path] = memory
        return memory.copy_(value, non_blocking=True)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype
