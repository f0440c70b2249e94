"""Batches of images, by the loader that the configuration names."""

from collections.abc import Callable, Generator, Iterable
from importlib import import_module

from common.errors import UserError
from configs.schema import LoaderConfig
from data.batch import Batch
from data.draws import Draws
from data.sources.index import ImageIndex

LOADERS = ("dali", "torchvision")


def load(
    index: ImageIndex,
    draws: Iterable[Draws],
    crop: int | None,
    loader: LoaderConfig,
    on_error: str,
    on_event: Callable[[str], None],
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
