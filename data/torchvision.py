"""The torchvision loader: worker processes of torch's DataLoader decode with torchvision or Pillow.

It reads as torchvision's ImageFolder does, and runs where DALI cannot be installed. Neither decoder
can decode a region, so all of a JPEG is decoded, but only the crop's rectangle is resized.
"""

import multiprocessing
import os
import signal
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from common.errors import UserError, reason
from common.machine import num_workers
from data.decoding import Replaced, prepare_image, show
from data.draws import Draws
from data.loading import Decoded, OnEvent, Request

_SHARED_MEMORY = "/dev/shm"  # where torch puts the tensors that processes share


@dataclass(frozen=True)
class _Packed:
    """A batch as a worker sends it: all pixels in one tensor, as each needs a file descriptor.

    The tensor lies in shared memory or, where that is full, is an array that goes through a pipe.
    """

    draws: Draws
    pixels: Any  # uint8, of B images one after the other
    shapes: list[tuple[int, ...]]  # of the images
    shown: list[int]  # [B], see Decoded
    replaced: list[Replaced]
    why_piped: str | None = None  # why shared memory was not available

    def shared(self) -> "_Packed":
        """The same with its images in shared memory, if there is room for them."""
        try:
            self.pixels.share_memory_()  # here, not when the queue sends it: there an error is lost
        except (RuntimeError, OSError) as error:
            return replace(self, pixels=self.pixels.numpy(), why_piped=reason(error))
        return self

    def pin_memory(self) -> "_Packed":
        """The same with its images in pinned memory; torch's DataLoader calls it."""
        return replace(self, pixels=torch.as_tensor(self.pixels).pin_memory())

    def unpacked(self, crop: int | None) -> Decoded:
        """The batch as data.loading gets it; crop=None: of whole images."""
        pixels: Tensor = torch.as_tensor(self.pixels)
        images: Tensor | list[Tensor]
        if crop is not None:
            images = pixels.view(-1, crop, crop, 3)
        else:
            parts = pixels.split([int(np.prod(shape)) for shape in self.shapes])
            images = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return Decoded(self.draws, images, np.array(self.shown, np.int64), self.replaced)


@dataclass
class _Images(Dataset[Any]):
    """A map from Draws to what a worker makes of them."""

    request: Request

    def __getitem__(self, draws: Draws) -> _Packed | UserError:
        """A UserError is returned: raised, it would come out wrapped in the worker's traceback."""
        request = self.request
        images, shown, replaced = list[npt.NDArray[np.uint8]](), list[int](), list[Replaced]()
        for row, i in enumerate(draws.indices):
            prepare = partial(show, draws=draws, row=row, crop=request.crop, exact=request.exact)
            try:
                image = prepare_image(request.index, int(i), prepare, skip=request.skip)
            except UserError as error:
                return error
            images.append(image.value)
            shown.append(image.shown)
            replaced += image.replaced
        pixels = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images]))
        packed = _Packed(draws, pixels, [image.shape for image in images], shown, replaced)
        return packed.shared() if get_worker_info() else packed


def _ignore_signals(_worker: int) -> None:
    """The main process saves first and then ends its workers, which get the same signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _data_loader(request: Request, draws: Iterable[Draws]) -> DataLoader[Any]:
    """A DataLoader whose sampler gives Draws: each worker makes whole batches."""
    config = request.config
    workers = num_workers() if config.workers is None else config.workers
    options: dict[str, Any] = {}
    if workers:
        # Workers are forked from a clean server. A fork of this process would inherit locks held by
        # the threads of CUDA, DALI or TensorBoard, which do not exist in the child to release them;
        # a spawned worker would take seconds to import torch each time.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__, "torchvision.io"])
        options = {"multiprocessing_context": context, "prefetch_factor": config.prefetch}
    return DataLoader(
        _Images(request),
        batch_size=None,
        sampler=draws,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


def _next(batches: Iterator[Any], workers: Collection[BaseProcess]) -> _Packed | UserError | None:
    """The next batch, None at the end. Raises UserError if a worker has died."""
    try:
        return next(batches, None)
    except (RuntimeError, OSError, EOFError):
        wait([worker.sentinel for worker in workers], timeout=1)  # its sockets may close first
        codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
        if not codes:
            raise
    # Not raised above: its traceback would keep the iterator and its other workers alive.
    how = f"killed by signal {-codes[0]}" if codes[0] < 0 else f"with exit status {codes[0]}"
    raise UserError(
        f"a worker process of loader=torchvision died ({how}), often because memory ran out: the "
        "same command resumes, with fewer loader.workers if it happens again"
    )


def _about_pipes(why: str) -> str:
    size = os.statvfs(_SHARED_MEMORY).f_frsize * os.statvfs(_SHARED_MEMORY).f_blocks / 2**20
    return (
        f"{_SHARED_MEMORY}, {size:.0f} MB, is too small for the batches of loader=torchvision, "
        f"which now take a slower way ({why}): enlarge it (docker run --shm-size=8g), or lower "
        "loader.workers or loader.prefetch"
    )


def decode_batches(
    request: Request, draws: Iterable[Draws], on_event: OnEvent
) -> Generator[Decoded]:
    """For data.loading. Images are CPU tensors, in pinned memory if there is a GPU."""
    others = set(multiprocessing.active_children())
    batches = iter(_data_loader(request, draws))
    workers = set(multiprocessing.active_children()) - others
    is_reported = False
    try:
        while (batch := _next(batches, workers)) is not None:
            if isinstance(batch, UserError):
                raise batch
            if batch.why_piped and not is_reported:
                is_reported = True
                on_event(_about_pipes(batch.why_piped))
            yield batch.unpacked(request.crop)
    finally:
        del batches  # its destructor ends the workers, except one whose storage does not answer
        for worker in workers:
            worker.kill()
