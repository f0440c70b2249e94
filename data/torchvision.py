"""The torchvision loader: Pillow in the worker processes of torch's DataLoader.

As torchvision's ImageFolder reads, and where DALI cannot be installed. Pillow decodes no regions:
all of a JPEG is decoded, only the crop's rectangle is resized.
"""

import multiprocessing
import signal
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
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
from data.decoding import Replaced, Replacements, find_image, show
from data.draws import Draws
from data.loading import Batch, make_batch
from data.sources.index import ImageIndex


@dataclass
class _Images(Dataset[Any]):
    """A map from Draws to what a worker makes of them."""

    index: ImageIndex
    crop: int | None
    on_error: str

    def __getitem__(self, draws: Draws) -> tuple[Any, ...] | str:
        """(draws, images, shown, replaced), or the message of a UserError.

        An exception would reach the user wrapped in the worker's traceback.
        """
        crops = None
        if self.crop is not None:
            crops = torch.empty((len(draws), self.crop, self.crop, 3), dtype=torch.uint8)
        images, shown, replaced = [], [], list[Replaced]()
        for row, i in enumerate(draws.indices):
            prepare = partial(
                show,
                scale=int(draws.scales[row]),
                place=draws.places[row],
                flip=bool(draws.flips[row]),
                crop=self.crop,
            )
            try:
                found = find_image(self.index, int(i), prepare, self.on_error)
            except UserError as error:
                return str(error)
            shown.append(found.shown)
            replaced += found.replaced
            if crops is None:
                images.append(torch.from_numpy(found.value.copy()))
            else:
                crops.numpy()[row] = found.value
        return draws, images if crops is None else crops, np.array(shown, np.int64), replaced


def _leave_signals_to_the_main_process(_worker: int) -> None:
    """It saves first, and ends its workers; they see what a terminal or scheduler sends as well."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(made: Any) -> Any:
    return made


def _data_loader(images: _Images, draws: Iterable[Draws], config: LoaderConfig) -> DataLoader[Any]:
    """A DataLoader of whole batches: its sampler's items are Draws, one worker makes one batch."""
    workers = num_cpus() if config.workers is None else config.workers
    options: dict[str, Any] = {}
    if workers:
        # Workers are forked from a clean server: a fork of this process would inherit locks held
        # by the threads of CUDA, DALI or TensorBoard, which do not exist in the child to free
        # them; a spawned worker would take seconds to import torch each time.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        options = {"multiprocessing_context": context, "prefetch_factor": config.prefetch}
    return DataLoader(
        images,
        batch_size=None,
        sampler=draws,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_the_main_process,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


def _next(made: Iterator[Any], workers: Collection[BaseProcess]) -> Any:
    """What a worker made next, None at the end. Raises UserError if one of them has died."""
    try:
        return next(made, None)
    except (RuntimeError, OSError, EOFError):
        wait([worker.sentinel for worker in workers], timeout=1)  # its sockets may close earlier
        codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
        if not codes:
            raise
    # Not raised above: with the traceback the iterator would live on, and its other workers too.
    how = f"killed by signal {-codes[0]}" if codes[0] < 0 else f"with exit status {codes[0]}"
    raise UserError(
        f"a worker process of loader=torchvision died ({how}), often because memory ran out: the "
        "same command resumes, with fewer loader.workers if it happens again"
    )


def batches(
    index: ImageIndex,
    draws: Iterable[Draws],
    crop: int | None,
    config: LoaderConfig,
    on_error: str,
    on_event: Callable[[str], None],
) -> Generator[Batch, None, None]:
    """See data.loading.load. Images are CPU tensors, in pinned memory if there is a GPU."""
    replacements = Replacements(index, on_event)
    others = set(multiprocessing.active_children())
    made = iter(_data_loader(_Images(index, crop, on_error), draws, config))
    workers = set(multiprocessing.active_children()) - others
    try:
        while (result := _next(made, workers)) is not None:
            if isinstance(result, str):
                raise UserError(result)
            drawn, images, shown, replaced = result
            replacements.tell(replaced)
            yield make_batch(images, index.labels[shown], drawn, shown)
    finally:
        del made  # its destructor ends the workers, except one whose storage does not answer
        for worker in workers:
            worker.kill()
