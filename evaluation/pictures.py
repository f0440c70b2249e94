"""Pictures with the true label, if it is known, and five predictions, as the paper's Figs. 4, 5."""

import math
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.style import BLUE, GREY, VERMILLION
from data.decoding import decode_rgb

_COLUMNS = 4
_RIGHT, _WRONG = BLUE, VERMILLION
_SIDE = 480  # pixels of a picture's longer side: the figure shows no more


@dataclass(frozen=True)
class Picture:
    """An image and what a network says of it."""

    image: bytes  # the encoded file
    truth: str | None  # None: not known
    guesses: list[tuple[str, float]]  # class and probability, best first


def draw_pictures(pictures: list[Picture], path: Path, title: str) -> None:
    """A PNG (or SVG, by the name) of all pictures, four in a row.

    The true class is marked where it is among the guesses; bars are probabilities.
    """
    rows = math.ceil(len(pictures) / _COLUMNS)
    columns = min(_COLUMNS, len(pictures))
    figure = Figure(figsize=(3.2 * columns, 4.6 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.4, 1.5] * rows)
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        above, below = grid[2 * row][column], grid[2 * row + 1][column]
        above.axis("off")
        below.axis("off")
        if place < len(pictures):
            _draw_image(above, pictures[place])
            _draw_guesses(below, pictures[place])
    figure.savefig(path, dpi=110)


def _draw_image(axes: Axes, picture: Picture) -> None:
    small = decode_rgb(picture.image)  # as the network sees it
    small.thumbnail((_SIDE, _SIDE))
    axes.imshow(small, interpolation="none")
    if picture.truth is None:
        return
    right = picture.truth in [name for name, _ in picture.guesses]
    colour = _RIGHT if right else _WRONG
    mark = "" if right else " (not among the five)"
    axes.set_title(f"true: {_short(picture.truth, 30)}{mark}", fontsize=9, color=colour)


def _draw_guesses(axes: Axes, picture: Picture) -> None:
    for place, (name, probability) in enumerate(picture.guesses):
        true = name == picture.truth
        colour = _RIGHT if true else GREY
        axes.barh(-place, probability, height=0.85, color=colour, alpha=0.25)
        label = f"{place + 1}  {_short(name, 34)}"
        weight = "bold" if true else "normal"
        axes.text(0.01, -place, label, va="center", fontsize=9, color=colour, weight=weight)
        axes.text(1.0, -place, f"{100 * probability:.0f} %", va="center", ha="right", fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_ylim(-4.6, 0.6)


def _short(name: str, width: int) -> str:
    """The first of a class's words ("kit fox, Vulpes macrotis"), cut to the width."""
    return shorten(name.split(",")[0], width, placeholder="…")
