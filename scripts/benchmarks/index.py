"""The list of a full ImageNet, and reading encoded images from files and from a tar.

Nothing is decoded here. Images come from the page cache for both, so that what is measured is the
cost of asking for them; a network file system adds its own for each file that is opened.
"""

import os
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from data.draws import epoch_order, training_draws
from data.sources.cache import cache_file, keep
from data.sources.imagenet import TARS, scan_state
from data.sources.index import ImageIndex, scan_folder
from data.sources.tars import TarBytes, list_images, open_tar, stamp_of

NUM_CLASSES, NUM_IMAGES, BATCH = 1000, 1_281_167, 128
_SAMPLE = 500  # images copied into a folder and into a tar
_PASSES = 4  # over them in a round

INDEX = {
    "index_load": "the kept list of 1,281,167 images of a tar, ready to read",
    "epoch_order": "the permutation of an epoch",
    "batch_draws": f"all that is drawn for a batch of {BATCH}",
}
READING = {
    "files": "ours: an image of a folder",
    "tar": "ours: an image of a tar",
    "open_read": "open, read, close",
    "pread": "a read at a position of an open file",
}


def index_rows(rounds: int) -> list[dict[str, Any]]:
    """Rows {path, seconds}, the first also megabytes: what it keeps, and takes at its peak."""
    with _full_set() as root:
        load = _best(lambda: scan_folder(root, "train"), rounds)
        tracemalloc.start()
        index = scan_folder(root, "train")
        memory = [round(held / 1e6, 1) for held in tracemalloc.get_traced_memory()]
        tracemalloc.stop()
    order = _best(lambda: epoch_order.__wrapped__(0, 0, len(index)), rounds)
    steps = iter(range(2**31))  # within an epoch its permutation is kept
    draws = _best(lambda: training_draws(0, next(steps), BATCH, len(index), (256, 512)), 100)
    seconds = dict(zip(INDEX, (load, order, draws), strict=True))
    rows: list[dict[str, Any]] = [
        {"path": path, "seconds": float(f"{took:.3g}")} for path, took in seconds.items()
    ]
    rows[0] |= {"megabytes": memory[0], "peak_megabytes": memory[1]}
    return rows


def reading_rows(index: ImageIndex, rounds: int) -> list[dict[str, Any]]:
    """Rows {path, images_per_second}: the same images of `index`, read one after the other."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        files, tar = _copies(index, Path(folder))
        assert tar.tar is not None
        paths = [files.path(i) for i in range(len(files))]
        places = list(zip(tar.tar.sizes.tolist(), tar.tar.offsets.tolist(), strict=True))
        handle = os.open(tar.folder, os.O_RDONLY)
        ways: dict[str, Callable[[int], bytes]] = {
            "files": files.read,
            "tar": tar.read,
            "open_read": lambda i: _read_file(paths[i]),
            "pread": lambda i: os.pread(handle, *places[i]),
        }
        try:
            order = np.random.default_rng(0).permutation(np.tile(np.arange(len(files)), _PASSES))
            # In turn, and the best counts, as for the loaders.
            speeds = [
                {path: _reads(read, order.tolist()) for path, read in ways.items()}
                for _ in range(max(rounds, 2))  # the first fills the page cache
            ]
        finally:
            os.close(handle)
    best = {path: max(speed[path] for speed in speeds) for path in READING}
    return [{"path": path, "images_per_second": round(speed)} for path, speed in best.items()]


def index_table(index: list[dict[str, Any]], reading: list[dict[str, Any]]) -> str:
    """The rows for people."""
    lines = [f"{'path':18}  {'ms':>8}"]
    for row in index:
        lines.append(f"{row['path']:18}  {1e3 * row['seconds']:8.3f}  {INDEX[row['path']]}")
    lines.append(
        f"{'':18}  {'':8}  {index[0]['megabytes']:.0f} MB, {index[0]['peak_megabytes']:.0f} at peak"
    )
    lines += ["", f"{'path':18}  images/s, not decoded, one thread"]
    for row in reading:
        path = row["path"]
        lines.append(f"{path:18}  {row['images_per_second']:8.0f}  {READING[path]}")
    return "\n".join(lines)


def _best(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest call."""
    took = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return min(took)


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _reads(read: Callable[[int], bytes], order: list[int]) -> float:
    """Images per second."""
    start = time.perf_counter()
    for i in order:
        read(i)
    return len(order) / (time.perf_counter() - start)


@contextmanager
def _full_set() -> Iterator[Path]:
    """A data set whose kept list has as many images as ImageNet; its tar is empty."""
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        patch.dict(os.environ, XDG_CACHE_HOME=folder),
    ):
        tar = Path(folder) / TARS["train"][0]
        tar.touch()
        names = np.char.add(b"n01440764_", np.arange(NUM_IMAGES).astype("S7"))
        keep(
            cache_file(tar),
            **scan_state(tar),
            classes=np.array([f"n{label:08d}" for label in range(NUM_CLASSES)]),
            counts=np.diff(np.arange(NUM_CLASSES + 1) * NUM_IMAGES // NUM_CLASSES),
            names=np.char.add(names, b".JPEG"),
            offsets=np.arange(NUM_IMAGES) * 115_000,
            sizes=np.full(NUM_IMAGES, 110_000),
        )
        yield Path(folder)


def _copies(index: ImageIndex, folder: Path) -> tuple[ImageIndex, ImageIndex]:
    """Some images of the index, spread evenly, as files in a folder and as members of a tar."""
    chosen = np.unique(np.linspace(0, len(index) - 1, min(_SAMPLE, len(index))).astype(int))
    (files := folder / "files" / "all").mkdir(parents=True)
    with tarfile.open(folder / "images.tar", "w") as tar:
        for k, i in enumerate(chosen.tolist()):
            file = files / f"{k:06d}.JPEG"
            file.write_bytes(index.read(i))
            tar.add(file, file.name)
    with open_tar(folder / "images.tar") as opened:
        found = list_images(opened)
    path = folder / "images.tar"
    places = TarBytes(str(path), stamp_of(path), found.offsets, found.sizes)
    labels = np.zeros(len(found.names), np.int64)
    return (
        ImageIndex(["all"], labels, str(files.parent), found.names),
        ImageIndex(["all"], labels, str(path), found.names, places),
    )
