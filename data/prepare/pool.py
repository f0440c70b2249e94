"""Runs a function over all images of an index in several processes; results keep its order."""

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

_ROWS = 64  # images in a task
_AHEAD = 3  # tasks in flight for each process: a slow one must not let results pile up

_work: tuple[Work[Any], ImageIndex]  # of this worker process


def over_images(work: Work[T], index: ImageIndex, *, num_workers: int, title: str) -> Iterator[T]:
    """Yields work(index, rows) for consecutive ranges of rows, from `num_workers` processes.

    The ranges do not depend on the number of processes. The progress bar shows `title`. Raises
    what `work` raises, and UserError if a process dies.
    """
    # As in the torchvision loader: a fork of this process could inherit locks that are held.
    context = multiprocessing.get_context("forkserver")
    function = getattr(work, "func", work)  # of a partial, whose own module is functools
    context.set_forkserver_preload([function.__module__])
    ranges = (range(len(index))[a : a + _ROWS] for a in range(0, len(index), _ROWS))
    pending: deque[tuple[range, Future[T]]] = deque()
    with (
        tqdm(total=len(index), desc=title, unit="img", disable=None) as bar,
        ProcessPoolExecutor(num_workers, context, _start, (work, index)) as pool,
    ):
        try:
            while True:
                while len(pending) < _AHEAD * num_workers and (rows := next(ranges, None)):
                    pending.append((rows, pool.submit(_run, rows)))
                if not pending:
                    return
                rows, future = pending.popleft()
                yield future.result()
                bar.update(len(rows))
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
    threading.Thread(target=_exit_with_main_process, daemon=True).start()


def _exit_with_main_process() -> None:
    """However that dies: a worker that waits for its next task would wait forever."""
    main = multiprocessing.parent_process()
    if main is not None:
        wait([main.sentinel])
        os._exit(1)


def _run(rows: range) -> Any:
    work, index = _work
    return work(index, rows)
