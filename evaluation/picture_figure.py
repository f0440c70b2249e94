"""A figure of pictures with their most probable classes, as in the paper's Figs. 4 and 5."""

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import IO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import refusing
from common.style import BLUE, GREY, VERMILLION
from data.decoding import decode_rgb
from evaluation.pictures import ClassifiedPicture

_COLUMNS = 4
_MAX_PICTURES = 24  # in a figure of the user's own pictures
_RIGHT, _WRONG = BLUE, VERMILLION
_LONGER_SIDE = 480  # pixels; the figure shows no more


def picture_figure(pictures: list[ClassifiedPicture], title: str) -> bytes:
    """A PNG of the first pictures. Raises UserError if one can no longer be read."""
    if len(pictures) > _MAX_PICTURES:
        title += f" (the first {_MAX_PICTURES} of {len(pictures)} pictures)"
    shown = []
    for picture in pictures[:_MAX_PICTURES]:
        predictions = list(zip(picture.words, picture.probabilities, strict=True))
        with refusing(OSError, what=f"cannot read {picture.image}"):
            image = Path(picture.image).read_bytes()
        shown.append(Picture(image, picture.truth_words, predictions))
    draw_pictures(shown, file := BytesIO(), title)
    return file.getvalue()


@dataclass(frozen=True)
class Picture:
    """An image and its most probable classes, as a figure shows them."""

    image: bytes  # the encoded file
    truth: str | None  # None: unknown
    predictions: list[tuple[str, float]]  # class and probability, most probable first


def draw_pictures(pictures: list[Picture], file: Path | IO[bytes], title: str) -> None:
    """Write a figure of all pictures, four in a row, as PNG or as the file's name says.

    Below each picture are bars of its probabilities; the true class is marked if it is among them.
    Raises OSError if the file cannot be written.
    """
    rows = math.ceil(len(pictures) / _COLUMNS)
    columns = min(_COLUMNS, len(pictures))
    figure = Figure(figsize=(3.2 * columns, 4.6 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.4, 1.5] * rows)
    for axes in grid.flat:
        axes.axis("off")
    for position, picture in enumerate(pictures):
        row, column = divmod(position, columns)
        _draw_image(grid[2 * row][column], picture)
        _draw_predictions(grid[2 * row + 1][column], picture)
    figure.savefig(file, dpi=110)


def _draw_image(axes: Axes, picture: Picture) -> None:
    image = decode_rgb(picture.image)  # as the network sees it
    image.thumbnail((_LONGER_SIDE, _LONGER_SIDE))
    axes.imshow(image, interpolation="none")
    if picture.truth is None:
        return
    right = picture.truth in [name for name, _ in picture.predictions]
    colour = _RIGHT if right else _WRONG
    note = "" if right else " (not among the five)"
    axes.set_title(f"true: {_short(picture.truth, 30)}{note}", fontsize=9, color=colour)


def _draw_predictions(axes: Axes, picture: Picture) -> None:
    for rank, (name, probability) in enumerate(picture.predictions):
        true = name == picture.truth
        colour = _RIGHT if true else GREY
        axes.barh(-rank, probability, height=0.85, color=colour, alpha=0.25)
        label = f"{rank + 1}  {_short(name, 34)}"
        weight = "bold" if true else "normal"
        axes.text(0.01, -rank, label, va="center", fontsize=9, color=colour, weight=weight)
        axes.text(1.0, -rank, f"{100 * probability:.0f} %", va="center", ha="right", fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_ylim(-4.6, 0.6)


def _short(name: str, width: int) -> str:
    """The first name of a class ("kit fox, Vulpes macrotis"), cut to the width."""
    return shorten(name.split(",")[0], width, placeholder="…")
