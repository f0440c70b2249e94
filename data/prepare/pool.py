"""Work on all images of an index by several processes, with results in order of the index."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from tqdm import tqdm

from common.errors import UserError
from data.sources.index import ImageIndex

T = TypeVar("T")
Work = Callable[[ImageIndex, range], T]

_PART = 64  # images that a process takes at once
_AHEAD = 3  # parts on their way for each process

_work: tuple[Work[Any], ImageIndex]  # of this worker process


def over_images(work: Work[T], index: ImageIndex, workers: int, what: str) -> Iterator[T]:
    """work(index, part) for one part of the index after the other, in `workers` processes.

    Where parts begin and end does not depend on the number of processes. `what` names the
    progress bar. Raises what `work` raises, and UserError if a process dies.
    """
    # As for the torchvision loader: a fork of this process could inherit locks that are held.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__])
    parts = iter([range(a, min(a + _PART, len(index))) for a in range(0, len(index), _PART)])
    pending: deque[tuple[range, Future[T]]] = deque()
    with (
        tqdm(total=len(index), desc=what, unit="img", disable=None) as bar,
        ProcessPoolExecutor(workers, context, _start, (work, index)) as pool,
    ):
        try:
            while True:
                while len(pending) < _AHEAD * workers and (part := next(parts, None)) is not None:
                    pending.append((part, pool.submit(_run, part)))
                if not pending:
                    return
                part, future = pending.popleft()
                yield future.result()
                bar.update(len(part))
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died, often because memory ran out: give fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(work: Work[T], index: ImageIndex) -> None:
    global _work
    _work = work, index
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process ends its workers
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _end_with_the_main_process() -> None:
    """However it dies: a worker that waits for its next part would wait for ever."""
    main = multiprocessing.parent_process()
    if main is not None:
        wait([main.sentinel])
        os._exit(1)


def _run(part: range) -> Any:
    work, index = _work
    return work(index, part)
