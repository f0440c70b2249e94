"""What training and validation get: batches of images, by the loader of the configuration."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

from common.errors import UserError
from configs.keys import keys_of
from configs.schema import LoaderConfig, TrainConfig
from configs.validate import one_of
from data.decoding import Replaced
from data.draws import Draws, Ints, centre_batches, training_draws
from data.sources.index import ImageIndex

OnEvent = Callable[[str], None]


@dataclass
class Batch:
    """B crops, as they were drawn."""

    images: Tensor  # uint8 [B, crop, crop, 3] RGB
    labels: Tensor  # int64 [B]
    colours: Tensor  # float32 [B, 3], to be added to every pixel value
    keys: Tensor  # int64 [B] for dropout masks
    indices: Tensor  # int64 [B] the images shown
    replaced: Tensor  # bool [B] whether the image drawn was unreadable and another one is shown


@dataclass
class WholeImages:
    """B whole images, resized as they were drawn: each has its own size."""

    images: list[Tensor]  # B x uint8 [h, w, 3] RGB
    replaced: Tensor  # bool [B] as in Batch


@dataclass(frozen=True)
class Request:
    """Which images a loader reads, and how it shows what is drawn. Picklable."""

    index: ImageIndex
    config: LoaderConfig
    skip: bool  # show the next readable image in place of an unreadable one
    crop: int | None = None  # pixels; None: whole images
    exact: bool = True  # see data.geometry.view


@dataclass(frozen=True)
class Decoded:
    """What a loader makes of the draws of B images."""

    draws: Draws
    images: Tensor | list[Tensor]  # uint8 RGB [B, crop, crop, 3], or whole images B x [h, w, 3]
    shown: Ints  # [B] the images shown: those drawn, or those that replace them
    replaced: list[Replaced]


def load(
    index: ImageIndex,
    draws: Iterable[Draws],
    *,
    crop: int,
    exact: bool = False,
    loader: LoaderConfig,
    on_error: str,
    on_event: OnEvent,
) -> Generator[Batch]:
    """One Batch for each of `draws`, in order, decoded ahead; `draws` may be endless.

    Images are shown as in Sec. 3: resized (bilinear, antialiased) so that the shorter side is the
    drawn scale, cropped to crop x crop pixels at the drawn position, flipped horizontally if drawn.
    Unless `exact`, as validation must be, a crop may lie up to half a source pixel from its place
    (data.geometry.view), which is faster. Everything random is in `draws`, so loading can start
    anywhere. Threads and processes end with the iterator; close() it to leave early.

    Raises UserError for an image that cannot be read or, with on_error=skip, replaces it by the
    next readable one of the index and passes a sentence to on_event, once for each such image.
    """
    request = Request(index, loader, skip=on_error == "skip", crop=crop, exact=exact)
    with closing(_decode(request, draws, on_event)) as batches:
        for batch in batches:
            assert isinstance(batch.images, Tensor)
            yield Batch(
                images=batch.images,
                labels=torch.from_numpy(index.labels[batch.shown]),
                colours=torch.from_numpy(batch.draws.colours),
                keys=torch.from_numpy(batch.draws.keys),
                indices=torch.from_numpy(batch.shown),
                replaced=torch.from_numpy(batch.shown != batch.draws.indices),
            )


def load_whole(
    index: ImageIndex,
    draws: Iterable[Draws],
    *,
    loader: LoaderConfig,
    on_error: str,
    on_event: OnEvent,
) -> Generator[WholeImages]:
    """As `load`, with the whole resized images instead of crops."""
    request = Request(index, loader, skip=on_error == "skip")
    with closing(_decode(request, draws, on_event)) as batches:
        for batch in batches:
            replaced = torch.from_numpy(batch.shown != batch.draws.indices)
            yield WholeImages(list(batch.images), replaced)


def _decode(request: Request, draws: Iterable[Draws], on_event: OnEvent) -> Generator[Decoded]:
    """The loader's batches; reports each unreadable image once."""
    name, path = request.config.name, request.index.path
    one_of("loader", name, keys_of(LoaderConfig)["name"].choices)
    try:
        module = import_module(f"data.{name}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"loader={name} needs {error.name}, which is not installed: see requirements.txt, "
            "or type loader=torchvision"
        ) from error
    reported: set[int] = set()
    with closing(module.decode_batches(request, draws, on_event)) as batches:
        for batch in batches:
            for bad in batch.replaced:
                if bad.image not in reported:
                    reported.add(bad.image)
                    on_event(
                        f"unreadable image {path(bad.image)} ({bad.reason}) "
                        f"replaced by {path(bad.shown)}"
                    )
            yield batch


def training_stream(
    config: TrainConfig, index: ImageIndex, share: slice, start: int, stop: int, on_event: OnEvent
) -> Generator[Batch]:
    """Rows `share` of the batches of steps start .. stop - 1, as Sec. 3 trains."""
    draw = partial(
        training_draws,
        config.seed,
        batch_size=config.batch_size,
        num_images=len(index),
        scale=config.data.scale_range,
    )
    steps = (step for step in range(start, stop) if not config.skipped_span(step + 1))
    draws = (draw(step=step).rows(share) for step in steps)
    return _load(config, index, draws, exact=False, on_event=on_event)


def centre_stream(
    config: TrainConfig, index: ImageIndex, indices: Ints, batch_size: int, on_event: OnEvent
) -> Generator[Batch]:
    """Centre crops of the images `indices`, at the validation scale."""
    draws = centre_batches(indices, config.data.validation_scale, batch_size)
    return _load(config, index, draws, exact=True, on_event=on_event)


def _load(
    config: TrainConfig,
    index: ImageIndex,
    draws: Iterable[Draws],
    *,
    exact: bool,
    on_event: OnEvent,
) -> Generator[Batch]:
    return load(
        index,
        draws,
        crop=config.data.crop,
        exact=exact,
        loader=config.loader,
        on_error=config.data.on_error,
        on_event=on_event,
    )
