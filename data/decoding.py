"""Decoding image files, and what to do about a bad one.

Pillow is the judge: a file is intact if Pillow decodes it without complaint. So both loaders accept
and refuse the same files.
"""

import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from common.errors import UserError, reason
from data.draws import Draws
from data.geometry import View, view
from data.sources.index import ImageIndex

T = TypeVar("T")

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")  # for others Pillow may run programs
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; Huffman coded
_JPEG_ADOBE, _JPEG_SCAN = 0xEE, 0xDA
_GIVE_UP = 1000  # unreadable images in a row: the storage is gone, not an image

# Some of ImageNet's files have corrupt metadata, which is not used here.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


class BadImage(Exception):
    """A file is not an intact image; the message says why."""


@dataclass(frozen=True)
class Replaced:
    """An image that could not be read, and the one shown instead."""

    image: int
    shown: int
    reason: str


@dataclass(frozen=True)
class Prepared(Generic[T]):
    """What was made of an image or, if it is bad, of the next readable one."""

    shown: int  # the image read
    value: T
    replaced: list[Replaced]  # the bad images before it


def prepare_image(
    index: ImageIndex, i: int, prepare: Callable[[bytes], T], *, skip: bool
) -> Prepared[T]:
    """prepare(encoded file) of image `i` or, if it is bad and `skip`, of the next readable image.

    `prepare` raises BadImage for a bad file. Raises UserError with the path of a bad image if not
    `skip`, or if no image is readable.
    """
    bad: list[tuple[int, str]] = []
    for offset in range(min(len(index), _GIVE_UP)):
        candidate = (i + offset) % len(index)
        try:
            value = prepare(index.read(candidate))
        except (BadImage, OSError) as error:
            why = reason(error)
            if not skip:
                raise UserError(
                    f"cannot read image {index.path(candidate)} ({why}): replace the file, "
                    "or type data.on_error=skip to take the next image instead"
                ) from error
            bad.append((candidate, why))
            continue
        return Prepared(candidate, value, [Replaced(image, candidate, why) for image, why in bad])
    raise UserError(
        f"cannot read image {index.path(i)} ({bad[0][1]}), nor any of the {len(bad)} images "
        "from there on"
    )


def decode_rgb(data: bytes) -> Image.Image:
    """The image as 8-bit RGB, whatever its mode; EXIF orientation is ignored.

    Raises BadImage if Pillow cannot decode all of it.
    """
    if not data:
        raise BadImage("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            image.load()
            return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise BadImage("not an image, or one in an unknown format") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow: OSError, SyntaxError, ValueError, struct.error, ...
        raise BadImage(str(error) or type(error).__name__) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits to 8: take the high byte.
        high = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # converting directly gives the same, with a warning
    return image.convert("RGB")


def render(image: Tensor, view: View, flip: bool) -> Tensor:
    """A view of a decoded image: uint8 RGB [h, w, 3] -> [*view.shape, 3].

    Resized with Pillow's bilinear filter. For views that are not exact, torch computes it in a
    fifth of Pillow's time: of a hundred million values of resized photographs, 0.17 % differ by
    one from Pillow's and 84 by two.
    """
    (top, left), (bottom, right) = view.start, view.end
    (row, column), (height, width) = view.window, view.shape
    source = image[top:bottom, left:right]
    if view.exact:
        whole = Image.fromarray(source.numpy()).resize(view.size[::-1], Image.Resampling.BILINEAR)
        resized = torch.from_numpy(np.array(whole))
    else:  # channels last in memory: otherwise torch takes a slower path
        planes = source[None].permute(0, 3, 1, 2)
        planes = interpolate(planes, size=view.size, mode="bilinear", antialias=True)
        resized = planes[0].permute(1, 2, 0)
    shown = resized[row : row + height, column : column + width]
    return shown.flip(1) if flip else shown


def _decode_pixels(data: bytes) -> Tensor:
    """As decode_rgb, uint8 [h, w, 3]; torchvision decodes ordinary JPEGs, faster than Pillow.

    Both use libjpeg-turbo and give the same pixels. Raises BadImage.
    """
    # Not above: it takes a second, and the DALI loader does without it.
    from torchvision.io import ImageReadMode, decode_jpeg

    if plain_jpeg_size(data):
        try:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0)
        except RuntimeError:
            pass  # Pillow is the judge
    return torch.from_numpy(np.array(decode_rgb(data)))


def show(
    data: bytes, draws: Draws, row: int, *, crop: int | None, exact: bool = True
) -> npt.NDArray[np.uint8]:
    """Decode a file and show it as row `row` of the draws says, see data.geometry.view.

    Returns uint8 RGB [crop, crop, 3], or [h, w, 3] if crop=None. Raises BadImage.
    """
    image = _decode_pixels(data)
    height, width, _ = image.shape
    shown = view(height, width, draws, row, crop=crop, exact=exact)
    return render(image, shown, bool(draws.flips[row])).numpy()


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of an ordinary JPEG with a proper end: 8 bits, greyscale or YCbCr.

    None for anything else, which only Pillow can judge. It reads only the header's segments, which
    takes microseconds.
    """
    if not (data.startswith(_JPEG_START) and data.endswith(_JPEG_END)):
        return None
    position, size, adobe_rgb = 2, None, False
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, (length,) = data[position + 1], struct.unpack_from(">H", data, position + 2)
        body = data[position + 4 : position + 2 + length]
        if marker == _JPEG_SCAN:
            return None if adobe_rgb else size
        if marker == _JPEG_ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe_rgb = body[11] == 0
        if marker in _JPEG_FRAMES:
            size = _frame_size(body)
        position += 2 + length
    return None


def _frame_size(body: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG frame header, if it is an ordinary one."""
    if len(body) < 6:
        return None
    bits, height, width, components = struct.unpack_from(">BHHB", body)
    named_rgb = body[6::3][:3] == b"RGB"
    if bits != 8 or components not in (1, 3) or named_rgb or not height or not width:
        return None
    # Pillow refuses images so large that the file must be an attack, or broken.
    return (height, width) if height * width <= (Image.MAX_IMAGE_PIXELS or 0) else None
