"""Checkpoints beside training: the loop waits for a copy in memory, a thread for the disk."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError

Write = Callable[[dict[str, Any]], None]  # brings a state to the disk, or raises


class Writer:
    """checkpoint.asynchronous=false: the loop waits for the disk. A context, as the other kind."""

    def save(self, state: dict[str, Any], write: Write) -> None:
        """Have `write` called with the state as it is now, after all that were given before."""
        write(state)

    def check(self) -> None:
        """Raise what a write that is over has raised; waits for nothing."""

    def wait(self) -> None:
        """Return once everything given is on the disk; raises what a write has raised."""

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait, also on an error; a UserError and one of the last write become one sentence."""
        try:
            self.wait()
        except UserError as failed:
            if isinstance(error, UserError) and error is not failed:
                raise UserError(f"{error}; {failed}") from error
            raise


class BackgroundWriter(Writer):
    """One thread writes; the loop goes on as soon as the tensors are copied.

    There is one copy: a save waits until the one before is on the disk. The copy's memory is used
    again. From a GPU it is page-locked and filled in order with the GPU's other work, so that the
    next update of the weights waits for the copy, and the loop for nothing.

    A write that failed raises its error from every call that follows: no run goes on without its
    checkpoints.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._write: Future[None] | None = None
        self._memory: dict[str, Tensor] = {}

    def save(self, state: dict[str, Any], write: Write) -> None:
        self.wait()
        copied = torch.cuda.Event() if torch.cuda.is_initialized() else None
        copy = self._copy(state, "")
        if copied:
            copied.record()
        self._write = self._thread.submit(_write_copy, copied, copy, write)

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

    def _copy(self, value: Any, place: str) -> Any:
        """The same nested value, its tensors in memory that only the thread reads."""
        if isinstance(value, dict):
            return {key: self._copy(part, f"{place}/{key}") for key, part in value.items()}
        if isinstance(value, list):
            return [self._copy(part, f"{place}/{i}") for i, part in enumerate(value)]
        if not isinstance(value, Tensor):
            return value
        memory = self._memory.get(place)
        if memory is None or _layout(memory) != _layout(value):
            memory = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._memory[place] = memory
        return memory.copy_(value, non_blocking=True)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


def _write_copy(copied: torch.cuda.Event | None, state: dict[str, Any], write: Write) -> None:
    if copied:
        copied.synchronize()
    write(state)


def open_writer(asynchronous: bool) -> Writer:
    """The writer that checkpoint.asynchronous asks for."""
    return BackgroundWriter() if asynchronous else Writer()
