"""Which windows of a resized image are classified (Sec. 3, testing): a plan, as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A square crop of a resized image, perhaps mirrored."""

    y: int  # first row, pixels
    x: int  # first column
    flip: bool = False


def _corners_and_centre(height: int, width: int, crop: int) -> list[tuple[int, int]]:
    down, right = height - crop, width - crop
    # The centre as in training's validation: rounded up where it falls between two pixels.
    return [(0, 0), (0, right), (down, 0), (down, right), ((down + 1) // 2, (right + 1) // 2)]


def plan(views: str, height: int, width: int, crop: int, *, square: bool = False) -> list[Window]:
    """The windows of side `crop` that `views` takes of a height x width image.

    centre: one. ten ([16]): the four corners and the centre, and all of them mirrored. The corners
    are those of the entire image, as in [11]; `square` takes the central square's instead.
    """
    if views == "centre":
        return [Window(*_corners_and_centre(height, width, crop)[-1])]
    top, left = 0, 0
    if square:
        side = min(height, width)
        top, left = (height - side + 1) // 2, (width - side + 1) // 2
        height = width = side
    places = _corners_and_centre(height, width, crop)
    return [Window(y + top, x + left, flip) for flip in (False, True) for y, x in places]
