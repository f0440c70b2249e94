"""Which views of a resized image are classified (Sec. 3, testing): plans, as data."""

from dataclasses import dataclass

# [11]'s sparse multi-view set: 18 views at each of these shorter sides for a crop of 224 (6 of them
# differ at 224), and two of the full image.
SPARSE_SCALES = [224, 256, 300, 360, 448, 560]


@dataclass(frozen=True)
class Window:
    """A square window of a resized image, perhaps mirrored."""

    y: int  # first row, pixels
    x: int  # first column
    flip: bool = False


def _middle(free: int) -> int:
    # As in training's validation: rounded up where it falls between two pixels.
    return (free + 1) // 2


def _places(views: str, down: int, right: int) -> list[tuple[int, int]]:
    """(y, x) of the windows of an image that leaves `down` x `right` pixels free."""
    corners = [(0, 0), (0, right), (down, 0), (down, right)]
    centre = (_middle(down), _middle(right))
    match views:
        case "centre":
            return [centre]
        case "ten":
            return [*corners, centre]
        case "grid":
            return [(down * i // 4, right * j // 4) for i in range(5) for j in range(5)]
        case "sparse":
            sides = [(0, centre[1]), (down, centre[1]), (centre[0], 0), (centre[0], right)]
            return [*corners, *sides, centre]
    raise ValueError(f"views={views} has no windows")


def plan(views: str, height: int, width: int, crop: int, *, square: bool = False) -> list[Window]:
    """The windows of side `crop` that `views` takes of a height x width image.

    centre: one. ten ([16]): the four corners and the centre. grid ([25]): 5 x 5, evenly spread.
    sparse ([11]): corners, centre, and the middles of the sides. All but centre are mirrored too.
    The corners are those of the entire image, as in [11]; `square` takes the central square's.
    """
    top, left = 0, 0
    if square:
        side = min(height, width)
        top, left = _middle(height - side), _middle(width - side)
        height = width = side
    places = _places(views, height - crop, width - crop)
    flips = [False] if views == "centre" else [False, True]
    return [Window(y + top, x + left, flip) for flip in flips for y, x in places]


def default_scales(views: str, crop: int, val_scale: int) -> list[int]:
    """Scales of `views` where none are given: those of [11] for sparse, else that of validation."""
    if views == "sparse":
        return [round(scale * crop / 224) for scale in SPARSE_SCALES]
    return [val_scale]


def full_scale(scales: list[int], val_scale: int) -> int:
    """At which of the scales sparse also takes the full image: 256 of [11]'s, or the nearest."""
    return min(scales, key=lambda scale: abs(scale - val_scale))


def scale_weights(views: str, scales: list[int], crop: int, val_scale: int) -> list[int]:
    """How much each scale counts when scales are combined.

    Alike, as in Table 4; but sparse averages over views, and has a different number of them at
    some scales ([11]: 6 at 224, 18 elsewhere, and two more of the full image).
    """
    if views != "sparse":
        return [1] * len(scales)
    full = full_scale(scales, val_scale)
    return [(6 if scale == crop else 18) + 2 * (scale == full) for scale in scales]
