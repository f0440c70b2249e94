"""Reading images from a tar: in threads and processes, and after the tar has changed."""

import gc
import multiprocessing
import os
import pickle
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from configs.schema import LoaderConfig
from data.draws import epoch_order, training_batches, training_draws
from data.loading import load
from data.sources.cache import cache_file, keep
from data.sources.imagenet import NUM_IMAGES, scan_state
from data.sources.index import ImageIndex, scan_folder
from scripts.benchmarks.data import class_folders
from tests.pictures import LOADERS
from tests.tars import TRAIN, VAL, Official, write_official

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return write_official(tmp_path / "official")


def contents(index: ImageIndex) -> list[bytes]:
    return [index.read(i) for i in range(len(index))]


def open_files(path: Path) -> int:
    """How many times this process has the file open."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(link) and os.path.samefile(link, path) for link in links)


def test_one_open_file_for_all_threads_closed_with_the_index(official: Official) -> None:
    path = official.root / TRAIN
    index = scan_folder(official.root, "train")
    expected = [official.train[index.classes[k]] for k in index.labels]
    assert open_files(path) == 0
    together = threading.Barrier(8)

    def read_all(index: ImageIndex) -> None:
        together.wait()
        for i, files in enumerate(expected):
            assert index.read(i) == files[index.names[i].decode()]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read_all, [index] * 8))
    assert open_files(path) == 1
    copy = pickle.loads(pickle.dumps(index))
    assert open_files(path) == 1
    assert contents(copy) == contents(index)
    assert open_files(path) == 2
    del index, copy
    gc.collect()
    assert open_files(path) == 0


def check_in_child(
    index: ImageIndex, expected: list[bytes], results: "multiprocessing.Queue[bool]"
) -> None:
    results.put(all(contents(index) == expected for _ in range(20)))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_processes_read_at_the_same_time(official: Official, method: str) -> None:
    index = scan_folder(official.root, "val")
    expected = contents(index)  # opened before the fork
    context = multiprocessing.get_context(method)
    results = context.Queue()
    children = [
        context.Process(target=check_in_child, args=(index, expected, results)) for _ in range(2)
    ]
    for child in children:
        child.start()
    assert all(contents(index) == expected for _ in range(20))
    assert all(results.get(timeout=120) for _ in children)
    for child in children:
        child.join()


@pytest.mark.parametrize("name", LOADERS)
def test_a_tar_that_changed_after_indexing_is_refused(official: Official, name: str) -> None:
    index = scan_folder(official.root, "train")
    os.utime(official.root / TRAIN)
    draws = training_batches(0, 0, 1, 4, len(index), (36, 64))
    config = LoaderConfig(name=name, workers=1, device="cpu")
    with pytest.raises(UserError, match=rf"{TRAIN} has changed since it was indexed"):
        list(load(index, draws, crop=32, loader=config, on_error="skip", on_event=pytest.fail))


def test_a_tar_cut_short_while_it_is_read_is_refused(official: Official) -> None:
    index = scan_folder(official.root, "val")
    assert index.tar is not None
    index.read(0)
    middle = int(index.tar.offsets[5]) + 10
    os.truncate(official.root / VAL, middle)
    with pytest.raises(UserError, match=rf"has changed .* ends at byte {middle}, inside"):
        index.read(5)


@pytest.mark.parametrize("name", LOADERS)
def test_images_of_a_cut_tar_are_not_replaced(official: Official, name: str) -> None:
    index = scan_folder(official.root, "train")
    draws = training_batches(0, 0, 200, 4, len(index), (36, 64))
    config = LoaderConfig(name=name, workers=1)
    batches = load(index, draws, crop=32, loader=config, on_error="skip", on_event=pytest.fail)
    next(batches)
    os.truncate(official.root / TRAIN, 10_000)
    with pytest.raises(UserError, match=rf"{TRAIN} has changed since it was indexed"):
        list(batches)


def test_a_missing_tar_is_an_oserror(official: Official) -> None:
    index = scan_folder(official.root, "val")
    (official.root / VAL).unlink()
    with pytest.raises(FileNotFoundError):
        index.read(0)


def seconds_of(run: Callable[[], object], rounds: int) -> float:
    """Of the fastest call, which other work on the machine slows least."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def test_a_list_as_long_as_imagenets_is_small_and_fast(tmp_path: Path) -> None:
    """A kept list of 1,281,167 images; the tar itself is empty."""
    num_images, num_classes = NUM_IMAGES["train"], 1000
    (tar := tmp_path / TRAIN).touch()
    names = np.char.add(b"n01440764_", np.arange(num_images).astype("S7"))
    keep(
        cache_file(tar),
        **scan_state(tar),
        classes=np.array([f"n{label:08d}" for label in range(num_classes)]),
        counts=np.diff(np.arange(num_classes + 1) * num_images // num_classes),
        names=np.char.add(names, b".JPEG"),
        offsets=np.arange(num_images) * 115_000,
        sizes=np.full(num_images, 110_000),
    )
    assert seconds_of(lambda: scan_folder(tmp_path, "train"), rounds=8) < 1.0
    tracemalloc.start()
    index = scan_folder(tmp_path, "train")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < peak < 200e6
    assert len(index) == num_images
    assert seconds_of(lambda: epoch_order.__wrapped__(0, 0, num_images), rounds=8) < 0.2
    steps = iter(range(2**31))  # within an epoch its permutation is kept
    draw = partial(training_draws, batch_size=128, num_images=num_images, scale=(256, 512))
    assert seconds_of(lambda: draw(0, next(steps)), rounds=100) < 1e-3


def test_the_benchmark_extracts_a_sample_of_tars(official: Official) -> None:
    images = scan_folder(official.root, "train")
    assert images.folder.endswith(TRAIN)
    with class_folders(official.root) as folder:
        files = scan_folder(folder, "train")
        assert sorted(contents(files)) == sorted(contents(images))
