"""Scores of a long evaluation on disk, part by part: to resume it, and to bring processes together.

A part holds the scores of a run of images. It is written atomically when its last image is done;
whichever process or session finds it leaves those images alone. A session that is told to stop
keeps what it has of the others.
"""

from functools import partial
from pathlib import Path

import numpy as np

from common.errors import refusing
from common.files import write_atomically
from data.draws import Ints
from evaluation.predictions import Floats

PART = 1024  # images


class Parts:
    """Scores [N, K] of one network at one scale, in parts of PART images."""

    def __init__(self, folder: Path, num_images: int, num_classes: int, size: int = PART) -> None:
        self.folder, self.num_images, self.num_classes = folder, num_images, num_classes
        self.size = size
        self._open: dict[int, Floats] = {}
        self._done: dict[int, np.ndarray] = {}  # bool, of the rows of an open part

    def _rows(self, part: int) -> int:
        return min(self.size, self.num_images - part * self.size)

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.npy"

    def _kept(self, part: int) -> Path:
        return self.folder / f"kept-{part:05d}.npz"

    def pending(self, rank: int, world_size: int) -> Ints:
        """Positions 0 .. N - 1 that this process has still to score, in order."""
        count = -(-self.num_images // self.size)
        mine = [p for p in range(rank, count, world_size) if not self._path(p).exists()]
        runs = []
        for part in mine:
            left = np.arange(self._rows(part))
            if self._kept(part).exists():
                left = np.flatnonzero(~self._begun(part))
            runs.append(part * self.size + left)
        return np.concatenate(runs) if runs else np.empty(0, np.int64)

    def _begun(self, part: int) -> np.ndarray:
        """Which rows of a part are done; what an earlier session has kept of it is read."""
        if part not in self._open:
            rows = self._rows(part)
            self._open[part] = np.full((rows, self.num_classes), np.nan, np.float32)
            self._done[part] = np.zeros(rows, bool)
            if self._kept(part).exists():
                with np.load(self._kept(part)) as kept:
                    self._open[part], self._done[part] = kept["scores"], kept["done"]
        return self._done[part]

    def put(self, position: int, scores: Floats | None) -> None:
        """Scores [K] of one image; None for an unreadable one. Full parts go to the disk."""
        part, row = divmod(position, self.size)
        done = self._begun(part)
        if scores is not None:
            self._open[part][row] = scores
        done[row] = True
        if done.all():
            self.folder.mkdir(parents=True, exist_ok=True)
            full = self._open.pop(part)
            del self._done[part]
            write_atomically(self._path(part), lambda file: np.save(file, full))
            self._kept(part).unlink(missing_ok=True)

    def keep(self) -> None:
        """Bring to the disk what there is of parts that are not full."""
        for part, scores in self._open.items():
            done = self._done[part]
            if done.any():
                self.folder.mkdir(parents=True, exist_ok=True)
                write = partial(np.savez, scores=scores, done=done)
                write_atomically(self._kept(part), write)

    def read(self) -> Floats:
        """All scores [N, K]; rows of unreadable images are not numbers."""
        count = -(-self.num_images // self.size)
        with refusing(FileNotFoundError, what="not all processes see the same disk"):
            return np.concatenate([np.load(self._path(part)) for part in range(count)])
