"""Draws the images of the generated set: each class is a pattern, everything else is random.

The classes differ in texture alone. Colours, contrast, polarity, frequency, orientation, position,
lighting, background and occlusion vary alike in every class, so that colour statistics do not give
the class away.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Map = npt.NDArray[np.floating[Any]]  # float32 in fact
Rng = np.random.Generator

_MIN_CONTRAST = 80.0  # in luma, between a pattern's colours: greyscale images show it too
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _noise(rng: Rng, height: int, width: int, cells: float) -> Map:
    """Smooth noise [height, width], about N(0, 1), with `cells` grid cells on the shorter side."""
    side = min(height, width) / cells
    shape = (max(int(height / side), 1) + 3, max(int(width / side), 1) + 3)
    grid = Image.fromarray(rng.standard_normal(shape, np.float32))
    # Bicubic interpolation; the border cells, where it lacks neighbours, are cut off.
    box = (1.0, 1.0, 1.0 + width / side, 1.0 + height / side)
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _cell(t: Map) -> Map:
    """Position inside the unit cell, in [-0.5, 0.5)."""
    return t - np.floor(t) - 0.5


def _crosses(u: Map, v: Map, rng: Rng) -> Map:
    a, b = np.abs(_cell(u)), np.abs(_cell(v))
    half, arm = rng.uniform(0.09, 0.14), rng.uniform(0.36, 0.44)
    return 8 * np.maximum(np.minimum(half - a, arm - b), np.minimum(half - b, arm - a))


def _bricks(u: Map, v: Map, rng: Rng) -> Map:
    a = np.abs(_cell(0.5 * u + 0.5 * (np.floor(v) % 2)))
    joint = rng.uniform(0.07, 0.13)
    return 8 * np.minimum(0.5 - np.abs(_cell(v)) - joint, 2 * (0.5 - a) - joint)


def _scales(u: Map, v: Map, rng: Rng) -> Map:
    """Overlapping discs in rows, as on a fish, each seen as an arc."""
    u, v = 1.4 * u, 1.4 * v
    radius = np.zeros_like(u)
    for row in (np.floor(v) + 1, np.floor(v)):  # the second hides the first
        reach = np.hypot(2 * _cell(0.5 * (u + row)), v - row)
        radius = np.where(reach < 1, reach, radius)
    return 4 * (np.abs(radius - 0.8) - 0.14)


# A pattern is a map of two coordinates, in periods. It is positive inside the figure, negative
# outside, and of about unit size; its zeros are the figure's edges.
PATTERNS: dict[str, Callable[[Map, Map, Rng], Map]] = {
    "stripes": lambda u, v, rng: np.sin(2 * np.pi * u),
    "checker": lambda u, v, rng: 2 * np.sin(np.pi * u) * np.sin(np.pi * v),
    "dots": lambda u, v, rng: (
        5 * (rng.uniform(0.26, 0.36) - np.hypot(_cell(u + 0.5 * (np.floor(v) % 2)), _cell(v)))
    ),
    "rings": lambda u, v, rng: np.sin(2 * np.pi * np.hypot(u, v)),
    "zigzag": lambda u, v, rng: np.sin(
        2 * np.pi * (u + rng.uniform(1.4, 2.0) * np.abs(_cell(0.6 * v)))
    ),
    "crosses": _crosses,
    "blobs": lambda u, v, rng: 1.5 * _noise(rng, u.shape[0], u.shape[1], rng.uniform(4, 7)),
    "bricks": _bricks,
    "spokes": lambda u, v, rng: 1.5 * np.sin(int(rng.integers(6, 12)) * np.arctan2(v, u)),
    "scales": _scales,
}


def _coordinates(rng: Rng, height: int, width: int) -> tuple[Map, Map, Map, Map]:
    """(y, x) from the centre, in shorter sides, and (u, v): rotated, shifted, bent, in periods."""
    side = min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32) / side
    y, x = y - np.float32(height / side / 2), x - np.float32(width / side / 2)
    angle = rng.uniform(-0.35, 0.35)
    frequency = rng.uniform(4.0, 6.5)  # periods along the shorter side
    stretch = math.exp(rng.uniform(-0.15, 0.15))
    y0, x0 = rng.uniform(-0.25, 0.25, 2).tolist()
    cos, sin = math.cos(angle), math.sin(angle)
    bend = rng.uniform(0.0, 0.2)
    u = frequency * stretch * (cos * (x - x0) + sin * (y - y0))
    v = frequency / stretch * (cos * (y - y0) - sin * (x - x0))
    u = u + bend * _noise(rng, height, width, 2.5)
    v = v + bend * _noise(rng, height, width, 2.5)
    return y, x, u, v


def _two_colours(rng: Rng) -> npt.NDArray[np.float32]:
    """[2, 3] two RGB colours on opposite sides of a random one; either may be the lighter."""
    middle = rng.uniform(90, 165, 3)
    while True:
        half = rng.uniform(-75, 75, 3)
        if 2 * abs(half @ _LUMA) > _MIN_CONTRAST:
            return np.stack([middle - half, middle + half]).astype(np.float32)


def _clutter(rng: Rng, height: int, width: int) -> Map:
    """A cloudy background [3, height, width]: noise at several scales."""
    fine = _noise(rng, height, width, rng.uniform(8, 24))
    planes = [
        rng.uniform(90, 165)
        + 30 * _noise(rng, height, width, rng.uniform(1.5, 4))
        + rng.uniform(5, 20) * fine
        for _ in range(3)
    ]
    return np.stack(planes)


def _occlude(rng: Rng, picture: Image.Image) -> None:
    """Draw up to three small shapes over the picture, each in one colour."""
    draw, side = ImageDraw.Draw(picture), min(picture.size)
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0, picture.width), rng.uniform(0, picture.height)
        w, h = rng.uniform(0.05, 0.22, 2) * side
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.integers(2) else draw.rectangle
        shape((x - w / 2, y - h / 2, x + w / 2, y + h / 2), fill=colour)


def draw_image(pattern: str, rng: Rng, height: int, width: int) -> Image.Image:
    """An RGB image of the class `pattern`; everything else about it is drawn from `rng`."""
    y, x, u, v = _coordinates(rng, height, width)
    ink = 0.5 + 0.5 * np.tanh(rng.uniform(1.5, 4.0) * PATTERNS[pattern](u, v, rng))
    first, second = _two_colours(rng)[:, :, None, None]
    figure = first + ink * (second - first)
    # The figure fills a rounded area, most of the image, in front of the background.
    side = min(height, width)
    reach_y = rng.uniform(0.4, 0.6) * height / side
    reach_x = rng.uniform(0.4, 0.6) * width / side
    y0, x0 = rng.uniform(-0.08, 0.08, 2).tolist()
    outside = ((y - y0) / reach_y) ** 2, ((x - x0) / reach_x) ** 2
    for _ in range(rng.integers(3)):  # an ellipse, or squarer
        outside = outside[0] ** 2, outside[1] ** 2
    cover = (1.1 - outside[0] - outside[1]) * rng.uniform(4, 12)
    cover = np.clip(cover, 0, rng.uniform(0.75, 1.0))
    picture = _clutter(rng, height, width)
    picture += cover * (figure - picture)
    slope_y, slope_x = rng.uniform(-0.4, 0.4, 2).tolist()
    picture *= rng.uniform(0.85, 1.15) * (1 + slope_y * y + slope_x * x)
    picture += rng.uniform(1, 6) * rng.standard_normal((height, width), np.float32)
    pixels = np.clip(np.rint(picture, out=picture), 0, 255, out=picture).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    _occlude(rng, image)
    return image
