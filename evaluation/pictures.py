"""Pictures and their five most probable classes: the user's own, or the paper's Figs. 4 and 5."""

import math
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import IO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import UserError, refusing
from common.style import BLUE, GREY, VERMILLION
from data.decoding import decode_rgb
from data.sources.folders import is_image, left_out, list_files
from data.sources.index import ImageIndex
from evaluation.predictions import Predictions, best_classes, readable

_COLUMNS = 4
_SHOWN = 24  # pictures in a figure of the user's own
_RIGHT, _WRONG = BLUE, VERMILLION
_SIDE = 480  # pixels of a picture's longer side: the figure shows no more


def open_pictures(names: str | list[str], classes: list[str]) -> ImageIndex:
    """Image files, or the image files in folders, in the order given; their labels are -1.

    Raises UserError if a name is neither, or cannot be read.
    """
    files, unused = list[str](), list[str]()
    for name in names if isinstance(names, list) else [names]:
        path = Path(name).expanduser().absolute()
        with refusing(OSError, what=f"cannot read images={name}"):
            inside = sorted(path.iterdir()) if path.is_dir() else [path]
            unused += [left_out(path, list_files(path).unused)] if path.is_dir() else []
            images = [str(file) for file in inside if is_image(os.fsencode(file.name))]
            if not path.exists() or not images:
                raise UserError(f"images={name} is no image file and no folder of some")
        files += images
    paths = np.array([os.fsencode(file) for file in files], np.bytes_)
    sentence = "; ".join(filter(None, unused))
    return ImageIndex(classes, np.full(len(files), -1, np.int64), "/", paths, left_out=sentence)


@dataclass(frozen=True)
class ClassifiedPicture:
    """One of the user's pictures and its five most probable classes."""

    image: str  # path
    truth: str | None  # the class whose folder it is in, if any
    classes: list[str]  # most probable first
    words: list[str]  # what people call them
    probabilities: list[float]
    truth_words: str | None

    def as_text(self) -> str:
        """The image, its true class if known, and a line for each class."""
        lines = [self.image + (f"  (true: {self.truth_words})" if self.truth else "")]
        for words, probability in zip(self.words, self.probabilities, strict=True):
            lines.append(f"  {100 * probability:6.2f} %  {words}")
        return "\n".join(lines)


def classify_pictures(
    predictions: Predictions, index: ImageIndex, words: list[str]
) -> list[ClassifiedPicture]:
    """The readable pictures; words: what people call each class."""
    words_of = dict(zip(predictions.classes, words, strict=True))
    best = best_classes(predictions.scores, 5)
    pictures = []
    for i in np.flatnonzero(readable(predictions.scores)).tolist():
        folder = Path(index.path(i)).parent.name
        classes = [predictions.classes[label] for label in best[i]]
        pictures.append(
            ClassifiedPicture(
                image=index.path(i),
                truth=folder if folder in words_of else None,
                classes=classes,
                words=[words_of[name] for name in classes],
                probabilities=predictions.scores[i, best[i]].tolist(),
                truth_words=words_of.get(folder),
            )
        )
    return pictures


def picture_figure(pictures: list[ClassifiedPicture], title: str) -> bytes:
    """A PNG of the first pictures. Raises UserError if one cannot be read any more."""
    if len(pictures) > _SHOWN:
        title += f" (the first {_SHOWN} of {len(pictures)} pictures)"
    shown = []
    for each in pictures[:_SHOWN]:
        predictions = list(zip(each.words, each.probabilities, strict=True))
        with refusing(OSError, what=f"cannot read {each.image}"):
            shown.append(Picture(Path(each.image).read_bytes(), each.truth_words, predictions))
    draw_pictures(shown, file := BytesIO(), title)
    return file.getvalue()


@dataclass(frozen=True)
class Picture:
    """An image and its most probable classes, as a figure shows them."""

    image: bytes  # the encoded file
    truth: str | None  # None: not known
    predictions: list[tuple[str, float]]  # class and probability, most probable first


def draw_pictures(pictures: list[Picture], file: Path | IO[bytes], title: str) -> None:
    """Write a figure (PNG, or SVG by the file's name) of all pictures, four in a row.

    Below each are bars of its probabilities. The true class is marked if it is among them. Raises
    OSError if the file cannot be written.
    """
    rows = math.ceil(len(pictures) / _COLUMNS)
    columns = min(_COLUMNS, len(pictures))
    figure = Figure(figsize=(3.2 * columns, 4.6 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.4, 1.5] * rows)
    for axes in grid.flat:
        axes.axis("off")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        _draw_image(grid[2 * row][column], picture)
        _draw_predictions(grid[2 * row + 1][column], picture)
    figure.savefig(file, dpi=110)


def _draw_image(axes: Axes, picture: Picture) -> None:
    small = decode_rgb(picture.image)  # as the network sees it
    small.thumbnail((_SIDE, _SIDE))
    axes.imshow(small, interpolation="none")
    if picture.truth is None:
        return
    right = picture.truth in [name for name, _ in picture.predictions]
    colour = _RIGHT if right else _WRONG
    mark = "" if right else " (not among the five)"
    axes.set_title(f"true: {_short(picture.truth, 30)}{mark}", fontsize=9, color=colour)


def _draw_predictions(axes: Axes, picture: Picture) -> None:
    for place, (name, probability) in enumerate(picture.predictions):
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
