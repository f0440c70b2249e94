"""Scores of a long evaluation on disk, part by part: to resume it, and to bring processes together.

A part holds the scores of a run of images. It is written atomically when its last image is done;
whichever process or session finds it leaves those images alone.
"""

from pathlib import Path

import numpy as np

from data.draws import Ints
from engine.atomic import write_atomically
from evaluation.predictions import Floats

PART = 1024  # images


class Parts:
    """Scores [N, K] of one network at one scale, in parts of PART images."""

    def __init__(self, folder: Path, num_images: int, num_classes: int, size: int = PART) -> None:
        self.folder, self.num_images, self.num_classes = folder, num_images, num_classes
        self.size = size
        self._open: dict[int, Floats] = {}
        self._left: dict[int, int] = {}

    def _path(self, part: int) -> Path:
        return self.folder / f"part-{part:05d}.npy"

    def pending(self, rank: int, world_size: int) -> Ints:
        """Positions 0 .. N - 1 that this process has still to score, in order."""
        count = -(-self.num_images // self.size)
        mine = [p for p in range(rank, count, world_size) if not self._path(p).exists()]
        runs = [
            np.arange(part * self.size, min((part + 1) * self.size, self.num_images))
            for part in mine
        ]
        return np.concatenate(runs) if runs else np.empty(0, np.int64)

    def put(self, position: int, scores: Floats | None) -> None:
        """Scores [K] of one image; None for an unreadable one. Full parts go to the disk."""
        part, row = divmod(position, self.size)
        if part not in self._open:
            rows = min(self.size, self.num_images - part * self.size)
            self._open[part] = np.full((rows, self.num_classes), np.nan, np.float32)
            self._left[part] = rows
        if scores is not None:
            self._open[part][row] = scores
        self._left[part] -= 1
        if not self._left[part]:
            self.folder.mkdir(parents=True, exist_ok=True)
            full = self._open.pop(part)
            write_atomically(self._path(part), lambda file: np.save(file, full))

    def read(self) -> Floats:
        """All scores [N, K]; rows of unreadable images are not numbers."""
        count = -(-self.num_images // self.size)
        return np.concatenate([np.load(self._path(part)) for part in range(count)])
