"""The torchvision loader: Pillow in the worker processes of torch's DataLoader.

It reads as torchvision's ImageFolder does, and runs where DALI cannot be installed. Pillow cannot
decode regions: all of a JPEG is decoded, and only the crop's rectangle is resized.
"""

import multiprocessing
import signal
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError
from common.machine import num_cpus
from configs.schema import LoaderConfig
from data.decoding import Replaced, prepare_image, show
from data.draws import Draws
from data.loading import Decoded
from data.sources.index import ImageIndex


@dataclass
class _Images(Dataset[Any]):
    """A map from Draws to what a worker makes of them."""

    index: ImageIndex
    crop: int | None
    skip: bool

    def __getitem__(self, draws: Draws) -> Decoded | UserError:
        """A UserError is returned: raised, it would come out wrapped in the worker's traceback."""
        crops = None
        if self.crop is not None:
            crops = torch.empty((len(draws), self.crop, self.crop, 3), dtype=torch.uint8)
        images, shown, replaced = list[torch.Tensor](), [], list[Replaced]()
        for row, i in enumerate(draws.indices):
            prepare = partial(
                show,
                scale=int(draws.scales[row]),
                position=draws.positions[row],
                flip=bool(draws.flips[row]),
                crop=self.crop,
            )
            try:
                image = prepare_image(self.index, int(i), prepare, skip=self.skip)
            except UserError as error:
                return error
            shown.append(image.shown)
            replaced += image.replaced
            if crops is None:
                images.append(torch.from_numpy(image.value.copy()))
            else:
                crops.numpy()[row] = image.value
        pixels = images if crops is None else crops
        return Decoded(draws, pixels, np.array(shown, np.int64), replaced)


def _ignore_signals(_worker: int) -> None:
    """The main process saves first and then ends its workers, which get the same signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _unchanged(batch: Any) -> Any:
    return batch


def _data_loader(images: _Images, draws: Iterable[Draws], config: LoaderConfig) -> DataLoader[Any]:
    """A DataLoader whose sampler gives Draws: each worker makes whole batches."""
    workers = num_cpus() if config.workers is None else config.workers
    options: dict[str, Any] = {}
    if workers:
        # Workers are forked from a clean server. A fork of this process would inherit locks held by
        # the threads of CUDA, DALI or TensorBoard, which do not exist in the child to release them;
        # a spawned worker would take seconds to import torch each time.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        options = {"multiprocessing_context": context, "prefetch_factor": config.prefetch}
    return DataLoader(
        images,
        batch_size=None,
        sampler=draws,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


def _next(batches: Iterator[Any], workers: Collection[BaseProcess]) -> Decoded | UserError | None:
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


def decode_batches(
    index: ImageIndex,
    draws: Iterable[Draws],
    *,
    crop: int | None,
    config: LoaderConfig,
    skip: bool,
) -> Generator[Decoded]:
    """For data.loading. Images are CPU tensors, in pinned memory if there is a GPU."""
    others = set(multiprocessing.active_children())
    batches = iter(_data_loader(_Images(index, crop, skip), draws, config))
    workers = set(multiprocessing.active_children()) - others
    try:
        while (batch := _next(batches, workers)) is not None:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        del batches  # its destructor ends the workers, except one whose storage does not answer
        for worker in workers:
            worker.kill()
