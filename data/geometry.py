"""What a draw shows of an image, in the image's own pixels: the same numbers for both loaders.

Sec. 3 resizes an image so that its shorter side is s and takes a crop of it. Everything but the
crop would be thrown away, so the loaders decode and resize only the crop's rectangle.
"""

from dataclasses import dataclass

import numpy as np

from data.draws import POSITION_ONE, Ints

# Pixels that a region decode adds on each side, whatever the filter needs: JPEG decoders
# interpolate colour from neighbouring samples, which are missing at a region's own edge.
_MIN_MARGIN = 8


@dataclass(frozen=True)
class View:
    """The rectangle of the source that is shown, and the size it is resized to. (y, x) order."""

    start: tuple[float, float]  # source pixels
    end: tuple[float, float]  # source pixels
    size: tuple[int, int]  # height, width of what is shown


def resized_size(height: int, width: int, scale: int) -> tuple[int, int]:
    """(height, width) once the shorter side is `scale`; the longer side is rounded down."""
    if height <= width:
        return scale, scale * width // height
    return scale * height // width, scale


def crop_offset(position: int, size: int, crop: int) -> int:
    """First row (or column) of a crop in a resized image of `size` rows (columns)."""
    return position * (size - crop + 1) // POSITION_ONE


def view(height: int, width: int, *, scale: int, position: Ints, crop: int | None) -> View:
    """The crop at `position` [2] of the resized image; crop=None: the whole resized image.

    The source has `height` x `width` pixels; its shorter side is resized to `scale`. Raises
    ValueError if the crop is larger than that.
    """
    rows, columns = resized_size(height, width, scale)
    if crop is None:
        return View((0.0, 0.0), (float(height), float(width)), (rows, columns))
    if scale < crop:
        raise ValueError(f"a crop of {crop} pixels from an image resized to {scale}")
    top = crop_offset(int(position[0]), rows, crop)
    left = crop_offset(int(position[1]), columns, crop)
    # Integers are divided last, so that the rectangle can never exceed the source.
    return View(
        (top * height / rows, left * width / columns),
        ((top + crop) * height / rows, (left + crop) * width / columns),
        (crop, crop),
    )


def region(view: View, height: int, width: int) -> tuple[Ints, Ints]:
    """Integer (start, end), each [2], of the source pixels that resizing to `view` reads."""
    source = np.array([height, width])
    start, end = np.array(view.start), np.array(view.end)
    # Antialiased bilinear: the triangle's half width is the downscaling factor, at least 1.
    support = np.ceil(np.maximum((end - start) / np.array(view.size), 1)) + 1
    margin = np.maximum(support, _MIN_MARGIN)
    low = np.maximum(np.floor(start - margin), 0).astype(np.int64)
    high = np.minimum(np.ceil(end + margin), source).astype(np.int64)
    return low, high
