"""Both loaders compared with a literal reading of Sec. 3 with Pillow, and with each other."""

import io
import itertools
import json
import math
import multiprocessing
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from common.errors import UserError
from configs.schema import LoaderConfig
from data import dali
from data.draws import POSITION_ONE, Draws, centre_batches, training_batches
from data.loading import load
from data.sources.index import ImageIndex
from tests.conftest import run_program
from tests.pictures import (
    CROP,
    LOADERS,
    difference,
    jpeg,
    largest,
    literal,
    read,
    some_draws,
    write_index,
)

PATHS = ["dali", "dali_whole", "torchvision", "whole_images", "plain_dali", "plain_torchvision"]
PATHS += ["region_bound", "decode_bound", "prepare", "resize"]
# Height and width: ordinary, portrait, odd, extreme aspect ratios, far too large, far too small.
SIZES = [(375, 500), (500, 333), (301, 257), (97, 1031), (900, 64), (1201, 1600), (61, 83), (9, 7)]


@pytest.fixture
def make_index(tmp_path: Path) -> Callable[[list[bytes]], ImageIndex]:
    """A function that writes files and returns an index of them."""
    return partial(write_index, tmp_path)


def many_views(num_images: int) -> list[Draws]:
    """Each image at every corner, up- and downscaled, flipped and not; and random draws."""
    corners = [
        some_draws(range(num_images), scale, [corner] * num_images, [flip] * num_images)
        for corner, scale, flip in zip(
            itertools.product((0.0, 1.0), repeat=2),
            (224, 225, 384, 512),
            (True, False) * 2,
            strict=True,
        )
    ]
    return corners + list(training_batches(3, 0, 4, num_images, num_images, (256, 512)))


@pytest.mark.parametrize("name", LOADERS)
def test_an_exact_crop_equals_resizing_then_cropping(name, make_index):
    files = [jpeg(*size, seed) for seed, size in enumerate(SIZES)]
    draws = many_views(len(files))
    for batch, drawn in zip(read(name, make_index(files), draws), draws, strict=True):
        assert batch.images.dtype == torch.uint8
        for row, i in enumerate(drawn.indices):
            truth = literal(files[i], drawn, row)
            assert largest(batch.images[row], truth) <= 2, (SIZES[i], drawn.scales[row])
            assert difference(batch.images[row], truth) < 0.2  # 0.002 unless it is enlarged


def whole_pixels(data: bytes, draws: Draws, row: int) -> npt.NDArray[np.int64]:
    """The drawn rectangle, rounded to whole pixels, cut out and then resized by Pillow."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale, (y, x) = int(draws.scales[row]), draws.positions[row].tolist()
    width, height = (side * scale // min(image.size) for side in image.size)
    edges = []
    for place, side, source in ((x, width, image.width), (y, height, image.height)):
        first = place * (side - CROP + 1) // POSITION_ONE
        drawn = [Fraction(end * source, side) for end in (first, first + CROP)]
        edges.append([math.floor(end + Fraction(1, 2)) for end in drawn])
        assert all(abs(a - b) <= 0.5 for a, b in zip(edges[-1], drawn, strict=True))
    (left, right), (top, bottom) = edges
    image = image.crop((left, top, right, bottom)).resize((CROP, CROP), Image.Resampling.BILINEAR)
    if draws.flips[row]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize("name", LOADERS)
def test_a_training_crop_shows_whole_source_pixels(name, make_index):
    files = [jpeg(*size, seed) for seed, size in enumerate(SIZES)]
    draws = many_views(len(files))
    batches = read(name, make_index(files), draws, exact=False)
    for batch, drawn in zip(batches, draws, strict=True):
        for row, i in enumerate(drawn.indices):
            small = drawn.scales[row] > 3 * min(SIZES[i])
            truth = (literal if small else whole_pixels)(files[i], drawn, row)
            assert largest(batch.images[row], truth) <= 2, (SIZES[i], drawn.scales[row])
            assert difference(batch.images[row], truth) < 0.2  # 0.002 unless it is enlarged


@pytest.mark.parametrize("exact", [False, True])
def test_loaders_give_the_same_bytes(exact, make_index):
    files = [jpeg(*size, seed) for seed, size in enumerate(SIZES)]
    index, draws = make_index(files), many_views(len(SIZES))
    read_all = (read(name, index, draws, exact=exact) for name in LOADERS)
    for dali_batch, torchvision_batch in zip(*read_all, strict=True):
        for field in ("images", "labels", "colours", "keys", "indices"):
            assert torch.equal(getattr(dali_batch, field), getattr(torchvision_batch, field)), field


@pytest.mark.parametrize("exact", [False, True])
def test_the_graph_for_a_gpu_shows_the_same(exact, make_index, monkeypatch):
    """Here it runs on the CPU. DALI's resize and Pillow's round differently."""
    files = [jpeg(*size, seed) for seed, size in enumerate(SIZES)]
    index, draws = make_index(files), many_views(len(SIZES))
    ours = [batch.images for batch in read("dali", index, draws, exact=exact)]
    build = dali.build_pipeline
    monkeypatch.setattr(
        dali, "build_pipeline", lambda *args, gpu, resize: build(*args, gpu=gpu, resize=True)
    )
    monkeypatch.setattr(dali, "render", lambda image, view, flip: image)
    for images, batch in zip(ours, read("dali", index, draws, exact=exact), strict=True):
        for image, resized_by_dali in zip(images, batch.images, strict=True):
            assert difference(image, resized_by_dali) < 0.5


def test_resizing_leaves_torchs_number_of_threads(make_index):
    before = torch.get_num_threads()
    list(read("dali", make_index([jpeg(90, 80)]), [some_draws([0], 96)], crop=64))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_decoding_a_region_equals_decoding_everything(subsampling, make_index):
    sizes = [(375, 500), (1201, 1600), (301, 257)]
    files = [jpeg(*size, seed, subsampling=subsampling) for seed, size in enumerate(sizes)]
    files.append(jpeg(375, 500, 9, subsampling=subsampling, progressive=True))
    index, draws = make_index(files), many_views(len(files))
    ways = (read("dali", index, draws, decode=way, exact=False) for way in ("region", "whole"))
    for region, whole in zip(*ways, strict=True):
        assert torch.equal(region.images, whole.images)


def test_failures_not_caused_by_files_are_reported_once_and_end_the_run(make_index, monkeypatch):
    """Out of memory, say: Pillow must not decode every batch for the rest of the training."""
    index = make_index([jpeg(90, 80, seed) for seed in range(4)])
    build, seen, events = dali.build_pipeline, [], list[str]()

    def by_pillow_only(feeder, config, **how):
        pipeline = build(feeder, config, **how)
        run = pipeline.run

        def failing(stream):
            images = run(stream)
            if not feeder._inside[0].by_pillow:
                raise RuntimeError("out of memory")
            return images

        pipeline.run = failing
        return pipeline

    monkeypatch.setattr(dali, "build_pipeline", by_pillow_only)
    draws = centre_batches(np.arange(400) % 4, 64, 4)
    batches = read("dali", index, draws, crop=56, on_event=events.append)
    with pytest.raises(RuntimeError, match="out of memory"):
        seen.extend(batches)
    assert 0 < len(seen) < 20
    assert events == ["Pillow decoded a batch on which DALI failed (out of memory)"]


@pytest.mark.parametrize("close", [False, True])
def test_memory_is_released_once_the_pipeline_is_gone(close, make_index, monkeypatch):
    """Earlier, all of it would still be in use."""
    build, pipelines, left = dali.build_pipeline, [], []

    def watched(*args, **how):
        pipeline = build(*args, **how)
        pipelines.append(weakref.ref(pipeline))
        return pipeline

    monkeypatch.setattr(dali, "build_pipeline", watched)
    monkeypatch.setattr(dali, "ReleaseUnusedMemory", lambda: left.append(pipelines[0]()))
    batches = read("dali", make_index([jpeg(90, 80)]), [some_draws([0], 96)] * 9, crop=64)
    next(batches)
    if close:
        batches.close()
    else:
        list(batches)
    assert left == [None]


@pytest.mark.parametrize("name", LOADERS)
def test_whole_images_keep_their_own_sizes(name, make_index):
    files = [jpeg(*size, seed) for seed, size in enumerate(SIZES)]
    draws = [
        some_draws(range(len(files)), [256, 300, 256, 224, 256, 480, 96, 30]),
        some_draws([2, 0], [100, 64], flips=[True, False]),
    ]
    for batch, drawn in zip(read(name, make_index(files), draws, crop=None), draws, strict=True):
        assert isinstance(batch.images, list)
        for row, i in enumerate(drawn.indices):
            truth = literal(files[i], drawn, row, None)
            assert largest(batch.images[row], truth) <= 2, SIZES[i]


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("workers", [None, 2])
def test_batches_of_any_size_come_in_order(name, workers, make_index):
    files = [jpeg(40 + 3 * i, 60, i) for i in range(5)]
    counts = [2, 1, 5, 3, 8, 1, 1, 4]
    draws = [some_draws([(n + k) % 5 for k in range(n)], 48) for n in counts]
    index = make_index(files)
    batches = list(read(name, index, iter(draws), crop=32, workers=workers))
    assert [len(batch.images) for batch in batches] == counts
    for batch, drawn in zip(batches, draws, strict=True):
        assert batch.indices.tolist() == drawn.indices.tolist()
        assert batch.labels.tolist() == index.labels[drawn.indices].tolist()
        assert batch.keys.tolist() == drawn.keys.tolist()
        assert batch.colours.tolist() == drawn.colours.tolist()
        for row, i in enumerate(drawn.indices):
            assert difference(batch.images[row], literal(files[i], drawn, row, 32)) < 0.3


@pytest.mark.parametrize("name", LOADERS)
def test_every_validation_image_comes_once(name, make_index):
    index = make_index([jpeg(40, 60, i) for i in range(7)])
    batches = list(read(name, index, centre_batches(np.arange(7), 36, 3), crop=32))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(read(name, index, [], crop=32)) == []


@pytest.mark.parametrize("name", LOADERS)
def test_starting_in_the_middle_gives_the_same_bytes(name, make_index):
    index = make_index([jpeg(50 + 7 * i, 90 - 5 * i, i) for i in range(6)])

    def steps(start: int) -> list[torch.Tensor]:
        draws = training_batches(7, start, 6, 4, len(index), (40, 80))
        return [batch.images for batch in read(name, index, draws, crop=32)]

    whole = steps(0)
    for start in (1, 4):
        for images, resumed in zip(whole[start:], steps(start), strict=True):
            assert torch.equal(images, resumed)


def alive() -> tuple[set[int], set[threading.Thread]]:
    children = {child.pid for child in multiprocessing.active_children()}
    return children, set(threading.enumerate())


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("ending", ["close", "error", "forgotten"])
def test_an_early_end_leaves_nothing_running(name, ending, make_index):
    index = make_index([jpeg(40, 60, i) for i in range(4)] + [b""])
    before, threads = alive(), native_threads()

    def endless() -> Iterator[Draws]:
        for step in itertools.count():
            yield some_draws([4] if ending == "error" and step == 5 else [0, 1, 2, 3], 48)

    batches = read(name, index, endless(), crop=32, workers=2)
    for _ in range(3):
        next(batches)
    assert native_threads() > threads or alive()[0] > before[0]
    if ending == "close":
        batches.close()
    elif ending == "error":
        with pytest.raises(UserError):
            list(batches)
    else:
        del batches
    deadline = time.monotonic() + 10
    while (alive() != before or native_threads() > threads) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive() == before
    assert native_threads() <= threads


def native_threads() -> int:
    """Threads of this process, DALI's too."""
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize("name", LOADERS)
def test_a_crop_larger_than_the_image_is_refused(name, make_index):
    with pytest.raises(ValueError, match="crop of 224"):
        next(read(name, make_index([jpeg(300, 400)]), [some_draws([0], 200)]))


def test_the_benchmark_measures_every_path(make_index):
    root = Path(make_index([jpeg(300, 400), jpeg(400, 300)]).folder).parent
    options = ["--json", "--root", str(root), "--images", "1", "--rounds", "1", "--threads", "1"]
    cache = str(root / "cache")
    done = run_program("scripts/benchmark.py", "data", *options, XDG_CACHE_HOME=cache)
    rows = json.loads(done.stdout)["rows"]
    assert [row["path"] for row in rows] == PATHS
    assert all(row["images_per_second"] > 0 for row in rows)
    in_processes = ["torchvision", "plain_torchvision"]
    assert [row["path"] for row in rows if row["cpu_ms"] is None] == in_processes


def test_an_unknown_loader_is_refused(make_index):
    with pytest.raises(UserError, match="dali, torchvision"):
        next(read("ffmpeg", make_index([jpeg(30, 40)]), []))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(make_index):
    index, config = make_index([jpeg(30, 40)]), LoaderConfig(name="dali", device="gpu")
    with pytest.raises(UserError, match="no CUDA device"):
        next(load(index, [], crop=32, loader=config, on_error="stop", on_event=print))
