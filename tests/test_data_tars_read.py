"""Reading images out of a tar: from threads and processes, and when the tar is no longer it."""

import gc
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import UserError
from configs.schema import LoaderConfig
from data.draws import training_batches
from data.loading import load
from data.sources.index import ImageIndex, scan_folder
from scripts.benchmarks.data import sample
from scripts.benchmarks.index import index_rows, reading_rows
from tests.pictures import LOADERS
from tests.tars import TRAIN, VAL, Official, write_official


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return write_official(tmp_path / "official")


def contents(index: ImageIndex) -> list[bytes]:
    return [index.read(i) for i in range(len(index))]


def open_files(path: Path) -> int:
    """How often this process has the file open."""
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
    again = pickle.loads(pickle.dumps(index))
    assert open_files(path) == 1
    assert contents(again) == contents(index)
    assert open_files(path) == 2
    del index, again
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
def test_a_tar_that_changed_after_it_was_indexed(official: Official, name: str) -> None:
    index = scan_folder(official.root, "train")
    os.utime(official.root / TRAIN)
    draws = training_batches(0, 0, 1, 4, len(index), (36, 64))
    config = LoaderConfig(name=name, workers=1, device="cpu")
    with pytest.raises(UserError, match=rf"{TRAIN} has changed since it was indexed"):
        list(load(index, draws, 32, config, "skip", pytest.fail))


def test_a_tar_cut_while_it_is_read(official: Official) -> None:
    index = scan_folder(official.root, "val")
    assert index.tar is not None
    index.read(0)
    middle = int(index.tar.offsets[5]) + 10
    os.truncate(official.root / VAL, middle)
    with pytest.raises(UserError, match=rf"has changed .* ends at byte {middle}, inside"):
        index.read(5)


@pytest.mark.parametrize("name", LOADERS)
def test_other_images_do_not_stand_in_for_a_cut_tar(official: Official, name: str) -> None:
    index = scan_folder(official.root, "train")
    draws = training_batches(0, 0, 200, 4, len(index), (36, 64))
    batches = load(index, draws, 32, LoaderConfig(name=name, workers=1), "skip", pytest.fail)
    next(batches)
    os.truncate(official.root / TRAIN, 10_000)
    with pytest.raises(UserError, match=rf"{TRAIN} has changed since it was indexed"):
        list(batches)


def test_a_tar_that_is_gone(official: Official) -> None:
    index = scan_folder(official.root, "val")
    (official.root / VAL).unlink()
    with pytest.raises(FileNotFoundError):
        index.read(0)


def test_a_full_imagenet_is_a_small_list(official: Official) -> None:
    """1,281,167 entries: best of several times, so that other work on the machine counts less."""
    rows = {row["path"]: row for row in index_rows(rounds=8)}
    assert rows["index_load"]["megabytes"] < rows["index_load"]["peak_megabytes"] < 200
    assert rows["index_load"]["seconds"] < 1.0
    assert rows["epoch_order"]["seconds"] < 0.2
    assert rows["batch_draws"]["seconds"] < 1e-3


def test_benchmark_of_reading(official: Official) -> None:
    rows = reading_rows(scan_folder(official.root, "train"), rounds=2)
    assert [row["path"] for row in rows] == ["files", "tar", "open_read", "pread"]
    speed = {row["path"]: row["images_per_second"] for row in rows}
    assert speed["tar"] > 0.8 * speed["files"]  # faster, on a quiet machine


def test_benchmark_takes_a_sample_out_of_tars(official: Official) -> None:
    with sample(official.root) as (folder, images):
        files = scan_folder(folder, "train")
        assert sorted(contents(files)) == sorted(contents(images))
        assert images.folder.endswith(TRAIN)
