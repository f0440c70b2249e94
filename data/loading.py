"""What training and validation get: batches of images, by the loader of the configuration."""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch

from common.errors import UserError
from configs.schema import LoaderConfig, TrainConfig
from data.draws import Draws, Ints, centre_batches, training_draws
from data.sources.index import ImageIndex

LOADERS = ("dali", "torchvision")

OnEvent = Callable[[str], None]


@dataclass
class Batch:
    """B images as they were drawn. Crops share one tensor; whole images keep their own sizes."""

    images: torch.Tensor | list[torch.Tensor]  # uint8 [B, crop, crop, 3] RGB, or B x [h, w, 3]
    labels: torch.Tensor  # int64 [B]
    colours: torch.Tensor  # float32 [B, 3], grey levels, to be added to every pixel
    keys: torch.Tensor  # int64 [B]
    indices: torch.Tensor  # int64 [B] the images shown
    replaced: torch.Tensor  # bool [B] whether it stands for another one, which is unreadable


def make_batch(
    images: torch.Tensor | list[torch.Tensor], labels: np.ndarray, draws: Draws, shown: np.ndarray
) -> Batch:
    """Put decoded images (the images `shown`, with their labels) and their draws together."""
    return Batch(
        images,
        torch.from_numpy(np.ascontiguousarray(labels, np.int64)),
        torch.from_numpy(draws.colours),
        torch.from_numpy(draws.keys),
        torch.from_numpy(np.ascontiguousarray(shown, np.int64)),
        torch.from_numpy(np.asarray(shown != draws.indices)),
    )


def load(
    index: ImageIndex,
    draws: Iterable[Draws],
    crop: int | None,
    loader: LoaderConfig,
    on_error: str,
    on_event: OnEvent,
) -> Generator[Batch, None, None]:
    """One Batch for each of `draws`, in order, decoded ahead; `draws` may be endless.

    Images are shown as Sec. 3 trains: resized (bilinear, antialiased) so that the shorter side is
    the drawn scale, a crop x crop rectangle at the drawn place, mirrored if drawn. crop=None: the
    whole resized images. Everything random is in `draws`, so that loading can start anywhere.
    Threads and processes end with the iterator; close() it to leave early.

    An image that cannot be read is a UserError that names it, or with on_error=skip is replaced
    by the next one of the index that can be; on_event is told of it once.
    """
    if loader.name not in LOADERS:
        raise UserError(f"unknown loader {loader.name!r}: take one of {', '.join(LOADERS)}")
    try:
        module = import_module(f"data.{loader.name}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"loader={loader.name} needs {error.name}, which is not installed: see "
            "requirements.txt, or type loader=torchvision"
        ) from error
    return module.batches(index, draws, crop, loader, on_error, on_event)


def skipping(step: int, spans: Sequence[Sequence[int]]) -> Sequence[int] | None:
    """The span [first, last] of skip_steps that step `step`, counted from 1, lies in, if any."""
    return next((span for span in spans if span[0] <= step <= span[1]), None)


def training_stream(
    config: TrainConfig, index: ImageIndex, share: slice, start: int, stop: int, on_event: OnEvent
) -> Generator[Batch]:
    """Rows `share` of the batches of steps start .. stop - 1, as Sec. 3 trains."""
    data, scale = config.data, config.data.scale_range
    steps = (step for step in range(start, stop) if not skipping(step + 1, config.skip_steps))
    every = (training_draws(config.seed, s, config.batch_size, len(index), scale) for s in steps)
    mine = (draws.rows(share) for draws in every)
    return load(index, mine, data.crop, config.loader, data.on_error, on_event)


def centre_stream(
    config: TrainConfig, index: ImageIndex, indices: Ints, batch_size: int, on_event: OnEvent
) -> Generator[Batch]:
    """Centre crops of the images `indices`, at the validation scale."""
    data = config.data
    draws = centre_batches(indices, data.validation_scale, batch_size)
    return load(index, draws, data.crop, config.loader, data.on_error, on_event)
