"""Which rectangle of the source image a draw shows; both loaders use the same integers.

Sec. 3 resizes an image so that its shorter side is s and takes a crop of it. Everything but the
crop would be thrown away, so in training the loaders decode and resize only the crop's rectangle.
"""

from dataclasses import dataclass, replace

from data.draws import POSITION_ONE, Draws

Place = tuple[int, int]  # (y, x), or (height, width)

# Rectangles of sources enlarged more than this are not rounded: half a source pixel would be more
# than 1.5 pixels of what is shown.
_LARGEST_ENLARGEMENT = 3


@dataclass(frozen=True)
class View:
    """A rectangle of the source is resized to `size`, and a window of the result is shown."""

    start: Place  # of the rectangle, source pixels
    end: Place  # of the rectangle, exclusive
    size: Place  # to which the rectangle is resized
    window: Place  # first row and column shown
    shape: Place  # of what is shown
    exact: bool = False  # resized by Pillow itself, as in validation and tests

    def inside(self, start: Place) -> "View":
        """The same view in the coordinates of a part of the source that begins at `start`."""
        (top, left), (y, x) = self.start, start
        bottom, right = self.end
        return replace(self, start=(top - y, left - x), end=(bottom - y, right - x))


def resized_size(height: int, width: int, scale: int) -> Place:
    """(height, width) once the shorter side is `scale`; the longer side is rounded down."""
    if height <= width:
        return scale, scale * width // height
    return scale * height // width, scale


def crop_offset(position: int, size: int, crop: int) -> int:
    """First row (or column) of a crop in a resized image of `size` rows (columns)."""
    return position * (size - crop + 1) // POSITION_ONE


def view(height: int, width: int, draws: Draws, row: int, *, crop: int | None, exact: bool) -> View:
    """The crop that row `row` of the draws shows; crop=None: the whole resized image.

    The source has `height` x `width` pixels. exact: all of it is resized, then cropped. Otherwise
    the crop's rectangle begins and ends on whole pixels of the source, at most half a pixel from
    its place, and nothing else has to be decoded or resized; sources so small that they are
    enlarged more than threefold are still resized whole.
    Raises ValueError if the crop is larger than the resized image.
    """
    scale, (y, x) = int(draws.scales[row]), draws.positions[row].tolist()
    rows, columns = size = resized_size(height, width, scale)
    if crop is None:
        return View((0, 0), (height, width), size, window=(0, 0), shape=size, exact=True)
    if scale < crop:
        raise ValueError(f"a crop of {crop} pixels from an image resized to {scale}")
    top, left = crop_offset(y, rows, crop), crop_offset(x, columns, crop)
    shape = (crop, crop)
    if exact or scale > _LARGEST_ENLARGEMENT * min(height, width):
        return View((0, 0), (height, width), size, window=(top, left), shape=shape, exact=exact)
    start = _nearest(top * height, rows), _nearest(left * width, columns)
    end = _nearest((top + crop) * height, rows), _nearest((left + crop) * width, columns)
    return View(start, end, shape, window=(0, 0), shape=shape)


def _nearest(numerator: int, denominator: int) -> int:
    """The integer nearest to a fraction that is not negative; one half is rounded up."""
    return (2 * numerator + denominator) // (2 * denominator)


def region(view: View, height: int, width: int, *, margin: int) -> tuple[Place, Place]:
    """(start, end) of the source pixels that `view` needs, and `margin` more on each side."""
    (top, left), (bottom, right) = view.start, view.end
    return (
        (max(top - margin, 0), max(left - margin, 0)),
        (min(bottom + margin, height), min(right + margin, width)),
    )
