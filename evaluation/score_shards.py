"""Scores of a long evaluation on disk, to resume it and to combine the scores of processes.

A shard holds the scores of a range of images. It is written atomically after its last image; every
process or later session that finds it skips those images. A session that is told to stop also saves
its unfinished shards.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import refusing
from common.files import lock, try_to_write, write_atomically
from data.draws import Ints
from engine.distributed import World
from evaluation.predictions import Floats

SHARD = 1024  # images


@contextmanager
def own_shards(folder: Path, world: World) -> Iterator[None]:
    """Lock the folder of an evaluation's shards.

    Raises UserError if another evaluation is using it, or if it cannot be written.
    """
    if not world.is_main:
        yield
        return
    file = folder / ".lock"
    with refusing(OSError, what=f"cannot write to {folder}", also="give out=FILE.json elsewhere"):
        folder.mkdir(exist_ok=True)
        try_to_write(file)
    busy = f"another eval.py is at work in {folder}: wait for it, or give out=FILE.json"
    with lock(file, busy=busy):
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            with suppress(OSError):  # not empty after an unfinished evaluation
                folder.rmdir()


class ScoreShards:
    """Scores [N, K] of one network at one scale, in shards of `size` images."""

    def __init__(self, folder: Path, num_images: int, num_classes: int, size: int = SHARD) -> None:
        self.folder, self.num_images, self.num_classes = folder, num_images, num_classes
        self.size, self.num_shards = size, -(-num_images // size)
        # Of the unfinished shards, by number: scores, and which of their rows are done (bool).
        self._scores: dict[int, Floats] = {}
        self._done: dict[int, np.ndarray] = {}

    def _finished(self, shard: int) -> Path:
        return self.folder / f"part-{shard:05d}.npy"

    def _unfinished(self, shard: int) -> Path:
        return self.folder / f"kept-{shard:05d}.npz"

    def pending(self, rank: int, world_size: int) -> Ints:
        """The positions, of 0 .. N - 1, that this process still has to score, in order."""
        positions = [np.empty(0, np.int64)]
        for shard in range(rank, self.num_shards, world_size):
            if self._finished(shard).exists():
                continue
            rows = np.arange(self._num_rows(shard))
            if self._unfinished(shard).exists():
                rows = np.flatnonzero(~self._open(shard))
            positions.append(shard * self.size + rows)
        return np.concatenate(positions)

    def _num_rows(self, shard: int) -> int:
        return min(self.size, self.num_images - shard * self.size)

    def _open(self, shard: int) -> np.ndarray:
        """Which rows of an unfinished shard are done; loads what an earlier session saved of it."""
        if shard not in self._done:
            rows = self._num_rows(shard)
            self._scores[shard] = np.full((rows, self.num_classes), np.nan, np.float32)
            self._done[shard] = np.zeros(rows, bool)
            if self._unfinished(shard).exists():
                with np.load(self._unfinished(shard)) as saved:
                    self._scores[shard], self._done[shard] = saved["scores"], saved["done"]
        return self._done[shard]

    def put(self, position: int, scores: Floats | None) -> None:
        """Add the scores [K] of an image, None if it is unreadable; writes its shard once full."""
        shard, row = divmod(position, self.size)
        done = self._open(shard)
        if scores is not None:
            self._scores[shard][row] = scores
        done[row] = True
        if done.all():
            full = self._scores.pop(shard)
            del self._done[shard]
            self._write(self._finished(shard), lambda file: np.save(file, full))
            self._unfinished(shard).unlink(missing_ok=True)

    def keep(self) -> None:
        """Save the unfinished shards."""
        for shard, done in self._done.items():
            if done.any():
                write = partial(np.savez, scores=self._scores[shard], done=done)
                self._write(self._unfinished(shard), write)

    def _write(self, path: Path, write: Any) -> None:
        with refusing(OSError, what=f"cannot write to {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)

    def remove(self) -> None:
        """Delete all shards, once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self) -> Floats:
        """All scores [N, K]; NaN for unreadable images."""
        with refusing(FileNotFoundError, what=f"not all processes see {self.folder}"):
            return np.concatenate([np.load(self._finished(s)) for s in range(self.num_shards)])
