"""Images per second of our loaders, of the usual ways to do the same, and of decoding alone.

All yield the training crops of Sec. 3: shorter side uniform in [256, 512], a random 224 x 224 crop,
half of them flipped. After the first pass the files are in the page cache: this measures decoding,
not the disk. CPU time, which other programs disturb less than speed, separates the parts of our
DALI loader: region_bound prepares and decodes, `dali` also resizes.
"""

import io
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from common.errors import UserError
from common.machine import num_cpus
from configs.schema import LoaderConfig
from data.decoding import decode_rgb, plain_jpeg_size, render
from data.draws import Draws, training_batches
from data.geometry import View, view
from data.loading import Batch, Request, WholeImages, load, load_whole
from data.sources.index import ImageIndex, scan_folder
from scripts.benchmarks.benchmark import Benchmark, Row, now, option, rounded, time_in_turns

CROP, LOW, HIGH, BATCH = 224, 256, 512, 64
_FROM_TARS = 1000  # images extracted from a tar
_WARM_UP = 3  # batches before timing starts: processes start, queues and the page cache fill


@dataclass(frozen=True)
class DataRow(Row):
    """The speed of one way to load training crops."""

    images_per_second: float  # median of the rounds
    spread: float  # from the slowest to the fastest round, relative to the median
    of_bound: float  # speed relative to region_bound's, median of the rounds
    cpu_ms: float | None  # CPU time an image, median, milliseconds; None: spent in other processes


@dataclass(frozen=True, kw_only=True)
class DataBenchmark(Benchmark):
    """Loading and decoding training crops."""

    paths: ClassVar = {
        "dali": "ours: decodes the crop's region only",
        "dali_whole": "ours, loader.decode=whole: as a GPU's JPEG engine can",
        "torchvision": "ours: decodes all, resizes the crop only",
        "whole_images": "ours, as in tests: DALI decodes all, all is resized to 256",
        "plain_dali": "DALI: decode, resize, crop_mirror_normalize",
        "plain_torchvision": "ImageFolder, transforms, DataLoader",
        "region_bound": "DALI: decoding the regions of ours, nothing else",
        "decode_bound": "DALI: decoding whole images, nothing else",
        "prepare": "ours, one thread: reads a file and its header, computes the view",
        "resize": "ours, one thread: resizes and flips a decoded region",
    }

    root: Path | None = option(None, "a data set; none: a generated one", type=Path)
    images: int = option(500, "timed for each path in a round")
    threads: int = option(num_cpus(), "threads, or processes")
    device: str = option(
        "gpu" if torch.cuda.is_available() else "cpu", "where DALI decodes", choices=["cpu", "gpu"]
    )

    def measure(self) -> list[DataRow]:
        """Images per second of each path.

        Raises UserError if the images cannot be read, or there is no GPU for device=gpu.
        """
        if self.device == "gpu" and not torch.cuda.is_available():
            raise UserError("--device gpu, but there is no CUDA device")
        with class_folders(self.root) as folder:
            index = scan_folder(folder, "train")
            loaders: dict[str, Callable[[], Iterator[int]]] = {
                "dali": partial(self._ours, index, "dali"),
                "dali_whole": partial(self._ours, index, "dali", decode="whole"),
                "torchvision": partial(self._ours, index, "torchvision"),
                "whole_images": partial(self._whole_images, index),
                "plain_dali": partial(self._plain_dali, folder, decode_only=False),
                "plain_torchvision": partial(self._plain_torchvision, folder),
                "region_bound": partial(self._decode_regions, index),
                "decode_bound": partial(self._plain_dali, folder, decode_only=True),
                "prepare": partial(_prepare, index),
                "resize": partial(_resize, index),
            }
            cpu_ms: dict[str, list[float]] = {path: [] for path in loaders}
            measurements = {
                path: partial(self._seconds, load_batches, cpu_ms[path])
                for path, load_batches in loaders.items()
            }
            timings = time_in_turns(measurements, self.rounds)
        in_processes = ("torchvision", "plain_torchvision")
        return [
            DataRow(
                path,
                images_per_second=rounded(1 / timing.median, 4),
                spread=timing.spread,
                of_bound=timing.speed_over(timings["region_bound"]),
                cpu_ms=None if path in in_processes else rounded(median(cpu_ms[path]), 3),
            )
            for path, timing in timings.items()
        ]

    def _seconds(self, load_batches: Callable[[], Iterator[int]], cpu_ms: list[float]) -> float:
        """Seconds an image; load_batches yields the sizes of its batches, without end.

        Appends this process's CPU time an image, in milliseconds, to `cpu_ms`.
        """
        sizes = load_batches()
        for _ in range(_WARM_UP):
            next(sizes)
        start, cpu, seen = now(), time.process_time(), 0
        while seen < self.images:
            seen += next(sizes)
        cpu_ms.append((time.process_time() - cpu) / seen * 1e3)
        return (now() - start) / seen

    def _ours(self, index: ImageIndex, loader: str, decode: str = "region") -> Iterator[int]:
        config = LoaderConfig(loader, workers=self.threads, device=self.device, decode=decode)
        draws = _draws(index)
        return _sizes(load(index, draws, crop=CROP, loader=config, on_error="stop", on_event=print))

    def _whole_images(self, index: ImageIndex) -> Iterator[int]:
        config = LoaderConfig("dali", workers=self.threads, device=self.device)
        draws = _draws(index, (LOW, LOW))
        return _sizes(load_whole(index, draws, loader=config, on_error="stop", on_event=print))

    def _decode_regions(self, index: ImageIndex) -> Iterator[int]:
        """Our DALI loader without its resize."""
        from data.dali import Feeder, build_pipeline

        config = LoaderConfig(name="dali", workers=self.threads, device=self.device)
        with ThreadPoolExecutor() as readers:
            request = Request(index, config, skip=False, crop=CROP, exact=False)
            feeder = Feeder(request, _draws(index), readers, margin=0, on_event=print)
            pipeline = build_pipeline(feeder, config, gpu=self.device == "gpu", resize=False)
            while True:
                pipeline.run()
                yield len(feeder.done().draws)

    def _plain_dali(self, root: Path, *, decode_only: bool) -> Iterator[int]:
        """DALI as its own ImageNet examples use it."""
        from nvidia.dali import Pipeline, fn, types

        gpu = self.device == "gpu"
        pipeline = Pipeline(
            batch_size=BATCH,
            num_threads=self.threads,
            device_id=torch.cuda.current_device() if gpu else None,
        )
        with pipeline:
            files, _ = fn.readers.file(file_root=str(root / "train"), random_shuffle=True)
            images: Any = fn.decoders.image(
                files, device="mixed" if gpu else "cpu", output_type=types.DALIImageType.RGB
            )
            if not decode_only:
                scale = fn.random.uniform(range=[LOW, HIGH])
                resized: Any = fn.resize(images, resize_shorter=scale)
                images = fn.crop_mirror_normalize(
                    resized,
                    crop=(CROP, CROP),
                    crop_pos_x=fn.random.uniform(range=[0.0, 1.0]),
                    crop_pos_y=fn.random.uniform(range=[0.0, 1.0]),
                    mirror=fn.random.coin_flip(),
                    mean=[123.0, 117.0, 104.0],
                    dtype=types.DALIDataType.FLOAT,
                )
            pipeline.set_outputs(images)
        while True:
            yield len(pipeline.run()[0])

    def _plain_torchvision(self, root: Path) -> Iterator[int]:
        """The usual ImageFolder, transforms and DataLoader."""
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        transform = v2.Compose(
            [
                v2.RandomShortestSize(list(range(LOW, HIGH + 1))),
                v2.RandomCrop(CROP),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            ]
        )
        images: Any = ImageFolder(str(root / "train"), transform)
        loader = torch.utils.data.DataLoader(
            images,
            batch_size=BATCH,
            sampler=torch.utils.data.RandomSampler(images, replacement=True, num_samples=2**31),
            num_workers=self.threads,
            multiprocessing_context=multiprocessing.get_context("forkserver"),
            pin_memory=torch.cuda.is_available(),
        )
        for batch, _ in loader:
            yield len(batch)


def _draws(index: ImageIndex, scale: tuple[int, int] = (LOW, HIGH)) -> Iterator[Draws]:
    return training_batches(0, 0, 2**31, BATCH, len(index), scale)


def _sizes(batches: Generator[Batch] | Generator[WholeImages]) -> Iterator[int]:
    with closing(batches):
        for batch in batches:
            yield len(batch.images)


def _views(index: ImageIndex) -> Iterator[tuple[bytes, View, bool]]:
    """The files that the loaders read, what of them is shown, and whether it is flipped."""
    for draws in _draws(index):
        for row, image in enumerate(draws.indices):
            data = index.read(int(image))
            height, width = plain_jpeg_size(data) or decode_rgb(data).size[::-1]
            shown = view(height, width, draws, row, crop=CROP, exact=False)
            yield data, shown, bool(draws.flips[row])


def _prepare(index: ImageIndex) -> Iterator[int]:
    for _ in _views(index):
        yield 1


def _resize(index: ImageIndex) -> Iterator[int]:
    torch.set_num_threads(1)
    regions = []
    for data, shown, flip in itertools.islice(_views(index), BATCH):
        (top, left), (bottom, right) = shown.start, shown.end
        pixels = np.asarray(decode_rgb(data))[top:bottom, left:right].copy()
        regions.append((torch.from_numpy(pixels), shown.inside(shown.start), flip))
    while True:
        for region in regions:
            render(*region)
            yield 1


@contextmanager
def class_folders(root: Path | None) -> Iterator[Path]:
    """A data set with folders train/<class>/*, which DALI's and torchvision's own readers need.

    root: a data set, replaced by a temporary folder with some of its images if they are in a tar.
    None: generated images of ImageNet's usual size. Raises UserError if there is no training set.
    """
    images = scan_folder(root, "train") if root else None
    if root and images and not images.tar:
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        (train := Path(folder) / "train" / "sample").mkdir(parents=True)
        if images is None:
            files = (_generated(seed) for seed in range(BATCH))
        else:
            spread = np.linspace(0, len(images) - 1, min(_FROM_TARS, len(images))).astype(int)
            files = (images.read(i) for i in np.unique(spread).tolist())
        for number, data in enumerate(files):
            (train / f"{number:06d}.jpg").write_bytes(data)
        yield Path(folder)


def _generated(seed: int) -> bytes:
    """A JPEG of ImageNet's most common size, 500 x 375 and about 110 KB."""
    rng = np.random.default_rng(seed)
    height, width = (375, 500) if seed % 3 else (500, 375)
    pixels = np.zeros((height, width, 3))
    # Noise at several scales, as in photographs: the longer the wavelength, the stronger.
    for wavelength in (2, 4, 16, 64):
        coarse = rng.integers(0, 256, (height // wavelength + 2, width // wavelength + 2, 3))
        layer = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), 3)
        pixels += (np.asarray(layer, float) - 128) * (wavelength / 64) ** 0.5
    file = io.BytesIO()
    Image.fromarray((128 + pixels).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()
