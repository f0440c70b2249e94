"""Images per second of our loaders, of the usual ways to do the same, and of decoding alone.

All give training crops of Sec. 3: shorter side uniform in [256, 512], a random 224 x 224 crop, one
half mirrored. Files come from the page cache after the first pass, so that decoding is measured.
"""

import io
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.errors import UserError
from common.machine import num_cpus
from configs.schema import LoaderConfig
from data.draws import training_batches
from data.loading import load
from data.sources.index import ImageIndex, scan_folder

CROP, LOW, HIGH, BATCH = 224, 256, 512, 64
_FROM_TARS = 1000  # images taken out of tars
_WARM_UP = 3  # batches: starting processes, filling queues and the page cache is not timed

WAYS = {
    "dali": "ours: decodes the crop's region only",
    "torchvision": "ours: decodes all, resizes the crop only",
    "plain_dali": "DALI: decode, resize, crop_mirror_normalize",
    "plain_torchvision": "ImageFolder, transforms, DataLoader",
    "decode_bound": "DALI: decoding whole images, nothing else",
}


@dataclass(frozen=True)
class Load:
    """What is measured."""

    images: int = 500  # timed for each row in a round
    rounds: int = 3
    threads: int = field(default_factory=num_cpus)  # or processes
    device: str = field(default_factory=lambda: "gpu" if torch.cuda.is_available() else "cpu")


def measure_data(folder: Path, what: Load) -> list[dict[str, Any]]:
    """Rows {path, images_per_second} for the images in folder/train/<class>/*.

    Raises UserError if they cannot be read, or there is no GPU for device=gpu.
    """
    if what.device == "gpu" and not torch.cuda.is_available():
        raise UserError("--device gpu, but there is no CUDA device")
    index = scan_folder(folder, "train")
    ways: dict[str, Callable[[], Iterable[int]]] = {
        "dali": lambda: _ours("dali", index, what),
        "torchvision": lambda: _ours("torchvision", index, what),
        "plain_dali": lambda: _run_dali(folder, what, decode_only=False),
        "plain_torchvision": lambda: _run_torchvision(folder, what),
        "decode_bound": lambda: _run_dali(folder, what, decode_only=True),
    }
    # In turn, and the best counts: other work on the machine only ever slows things down.
    speeds = [
        {path: _speed(way(), what.images) for path, way in ways.items()} for _ in range(what.rounds)
    ]
    return [
        {"path": path, "images_per_second": round(max(speed[path] for speed in speeds), 1)}
        for path in WAYS
    ]


def table(rows: list[dict[str, Any]], what: Load) -> str:
    """The rows for people."""
    head = f"{what.threads} threads or processes, DALI on the {what.device}, crops of {CROP} from"
    lines = [f"{head} images resized to {LOW}..{HIGH}", "", f"{'path':18}  images/s"]
    for row in rows:
        path = row["path"]
        lines.append(f"{path:18}  {row['images_per_second']:8.1f}  {WAYS[path]}")
    return "\n".join(lines)


def _speed(sizes: Iterable[int], images: int) -> float:
    """Images per second of an endless sequence of batches, given as their sizes."""
    batches = iter(sizes)
    for _ in range(_WARM_UP):
        next(batches)
    start, seen = time.perf_counter(), 0
    while seen < images:
        seen += next(batches)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - start)


def _ours(name: str, index: ImageIndex, what: Load) -> Iterator[int]:
    config = LoaderConfig(name=name, workers=what.threads, device=what.device)
    draws = training_batches(0, 0, 2**31, BATCH, len(index), (LOW, HIGH))
    with closing(load(index, draws, CROP, config, "stop", print)) as batches:
        for batch in batches:
            yield len(batch.labels)


def _run_dali(root: Path, what: Load, decode_only: bool) -> Iterator[int]:
    """DALI as its own ImageNet examples use it."""
    from nvidia.dali import Pipeline, fn, types

    gpu = what.device == "gpu"
    pipeline = Pipeline(
        batch_size=BATCH,
        num_threads=what.threads,
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


def _run_torchvision(root: Path, what: Load) -> Iterator[int]:
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
        num_workers=what.threads,
        multiprocessing_context=multiprocessing.get_context("forkserver"),
        pin_memory=torch.cuda.is_available(),
    )
    for batch, _ in loader:
        yield len(batch)


@contextmanager
def sample(root: Path | None) -> Iterator[tuple[Path, ImageIndex]]:
    """A folder with train/<class>/*, which the usual ways need, and the images of `root`.

    None: generated ones of ImageNet's usual size. Where `root` holds tars, the folder is a
    temporary one with some of their images. Raises UserError if `root` has no training set.
    """
    images = None if root is None else scan_folder(root, "train")
    if root is not None and images is not None and images.tar is None:
        yield root, images
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        (train := Path(folder) / "train" / "sample").mkdir(parents=True)
        if images is None:
            files = (_generated(seed) for seed in range(BATCH))
        else:
            places = np.linspace(0, len(images) - 1, min(_FROM_TARS, len(images))).astype(int)
            files = (images.read(i) for i in np.unique(places).tolist())
        for k, data in enumerate(files):
            (train / f"{k:06d}.jpg").write_bytes(data)
        yield Path(folder), images or scan_folder(folder, "train")


def _generated(seed: int) -> bytes:
    """A JPEG of ImageNet's most usual size, 500 x 375, and file length, about 110 KB."""
    rng = np.random.default_rng(seed)
    height, width = (375, 500) if seed % 3 else (500, 375)
    pixels = np.zeros((height, width, 3))
    # Noise at several scales, as photographs have: amplitude in proportion to wavelength.
    for wavelength in (2, 4, 16, 64):
        coarse = rng.integers(0, 256, (height // wavelength + 2, width // wavelength + 2, 3))
        layer = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), 3)
        pixels += (np.asarray(layer, float) - 128) * (wavelength / 64) ** 0.5
    file = io.BytesIO()
    Image.fromarray((128 + pixels).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()
