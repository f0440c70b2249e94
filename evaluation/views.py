"""The views of a resized image that are scored (Sec. 3, testing)."""

from dataclasses import dataclass
from enum import StrEnum

# Shorter sides of [11]'s sparse multi-view testing, for a crop of 224.
SPARSE_SCALES = [224, 256, 300, 360, 448, 560]


class Views(StrEnum):
    """A set of views. All but CENTRE include the horizontal flip of each view."""

    CENTRE = "centre"  # the centre crop, as in validation
    TEN = "ten"  # the four corners and the centre ([16])
    GRID = "grid"  # 5 x 5 crops, evenly spaced ([25])
    SPARSE = "sparse"  # corners, centre, middles of the sides, and the full image ([11])
    DENSE = "dense"  # every window of the last feature map (evaluation/dense.py)


@dataclass(frozen=True)
class Window:
    """A square window of a resized image."""

    y: int  # first row, pixels
    x: int  # first column
    flip: bool = False


def image_windows(
    views: str, height: int, width: int, crop: int, *, square: bool = False
) -> list[Window]:
    """The crop x crop windows of a height x width image; raises ValueError for DENSE.

    `square`: windows of the image's central square, as in [16], not of the whole image, as in [11].
    """
    top, left = 0, 0
    if square:
        side = min(height, width)
        top, left = _half(height - side), _half(width - side)
        height = width = side
    bottom, right = height - crop, width - crop  # the last start row and column
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    y, x = centre = _half(bottom), _half(right)
    match views:
        case Views.CENTRE:
            return [Window(top + y, left + x)]
        case Views.TEN:
            starts = [*corners, centre]
        case Views.GRID:
            starts = [(bottom * i // 4, right * j // 4) for i in range(5) for j in range(5)]
        case Views.SPARSE:
            starts = [*corners, (0, x), (bottom, x), (y, 0), (y, right), centre]
        case _:
            raise ValueError(f"views={views} has no windows in the image")
    return [Window(top + y, left + x, flip) for flip in (False, True) for y, x in starts]


def _half(length: int) -> int:
    return (length + 1) // 2  # rounded up, as for the centre crops of validation


def default_scales(views: str, crop: int, val_scale: int) -> list[int]:
    """The scales if none are given: those of [11] for SPARSE, else that of validation."""
    if views == Views.SPARSE:
        return [round(scale * crop / 224) for scale in SPARSE_SCALES]
    return [val_scale]


def full_image_scale(scales: list[int], val_scale: int) -> int:
    """The scale at which SPARSE also takes the full image: 256 in [11], here the nearest to it.

    val_scale: 256 for a crop of 224.
    """
    return min(scales, key=lambda scale: abs(scale - val_scale))


def scale_weights(views: str, scales: list[int], crop: int, val_scale: int) -> list[int]:
    """The weight of each scale in the combined score.

    All scales weigh the same (Table 4), except for SPARSE, where all views do: 18 at a scale, but 6
    at the scale of the crop, where windows coincide, and 2 more of the full image ([11]).
    """
    if views != Views.SPARSE:
        return [1] * len(scales)
    full = full_image_scale(scales, val_scale)
    return [(6 if scale == crop else 18) + 2 * (scale == full) for scale in scales]
