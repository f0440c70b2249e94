"""Shared by tests of the loaders: files, draws, and a literal reading of Sec. 3 with Pillow."""

import io
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from configs.schema import LoaderConfig
from data.draws import POSITION_ONE, Draws
from data.loading import Batch, WholeImages, load, load_whole
from data.sources.index import ImageIndex

Pixels = npt.NDArray[np.uint8]
Picture = torch.Tensor | npt.NDArray[Any]
LOADERS = ["dali", "torchvision"]
CROP = 224


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """A smooth image with edges and texture, [height, width, 3]: no two positions look alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 90 * np.sin(x / (9 + 5 * c) + seed) * np.cos(y / (13 - 3 * c)) for c in range(3)]
    pixels = np.stack(waves, axis=-1) + 40 * ((x // 16 + y // 16) % 2)[..., None]
    pixels += rng.normal(0, 12, (height, width, 1))
    return pixels.clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(height: int, width: int, seed: int = 0, **options: Any) -> bytes:
    return encoded(Image.fromarray(picture(height, width, seed)), quality=92, **options)


def write_index(folder: Path, files: list[bytes]) -> ImageIndex:
    """Write the files as FOLDER/train/<class>/NNN.JPEG, half of them in each of two classes."""
    labels = np.arange(len(files)) * 2 // len(files)
    index = ImageIndex(
        ["first", "second"],
        labels.astype(np.int64),
        str(folder / "train"),
        np.array([b"%03d.JPEG" % i for i in range(len(files))]),
    )
    for i, data in enumerate(files):
        Path(index.path(i)).parent.mkdir(parents=True, exist_ok=True)
        Path(index.path(i)).write_bytes(data)
    return index


def some_draws(
    indices: Iterable[int],
    scales: int | list[int] = 256,
    positions: list[tuple[float, float]] | None = None,
    flips: list[bool] | None = None,
) -> Draws:
    """Draws of these images; crop positions are in [0, 1], by default the centre."""
    count = len(indices := list(indices))
    positions = positions or [(0.5, 0.5)] * count
    return Draws(
        np.array(indices, np.int64),
        np.broadcast_to(np.array(scales, np.int64), count),
        np.array(
            [[min(int(p * POSITION_ONE), POSITION_ONE - 1) for p in yx] for yx in positions],
            np.int64,
        ),
        np.array(flips or [False] * count),
        np.arange(3 * count, dtype=np.float32).reshape(count, 3),
        np.arange(count, dtype=np.int64) + 1000,
    )


def read(
    name: str,
    index: ImageIndex,
    draws: Iterable[Draws],
    crop: int | None = CROP,
    on_error: str = "stop",
    on_event: Callable[[str], None] = pytest.fail,
    workers: int | None = None,
    decode: str = "region",
    exact: bool = True,
) -> Generator[Batch | WholeImages]:
    if workers is None:
        workers = 2 if name == "dali" else 0
    config = LoaderConfig(name=name, workers=workers, device="cpu", decode=decode)
    options = {"loader": config, "on_error": on_error, "on_event": on_event}
    if crop is None:
        return load_whole(index, draws, **options)
    return load(index, draws, crop=crop, exact=exact, **options)


def literal(data: bytes, draws: Draws, row: int, crop: int | None = CROP) -> npt.NDArray[np.int64]:
    """Resize the whole image, then crop, then flip, with Pillow alone."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = int(draws.scales[row])
    width, height = (side * scale // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if crop is not None:
        y, x = (int(p) / POSITION_ONE for p in draws.positions[row])
        top, left = int(y * (height - crop + 1)), int(x * (width - crop + 1))
        image = image.crop((left, top, left + crop, top + crop))
    if draws.flips[row]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).astype(np.int64)


def absolute_difference(a: Picture, b: Picture) -> npt.NDArray[np.int64]:
    """Of each pixel value; the shapes must be equal."""
    assert a.shape == b.shape
    return np.abs(np.asarray(a).astype(np.int64) - np.asarray(b).astype(np.int64))


def largest(a: Picture, b: Picture) -> int:
    """Largest absolute difference in pixel values."""
    return int(absolute_difference(a, b).max())


def difference(a: Picture, b: Picture) -> float:
    """Mean absolute difference in pixel values."""
    return float(absolute_difference(a, b).mean())
