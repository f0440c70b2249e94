"""How every figure looks, and how it is saved: the same figure always gives the same bytes.

Series differ in colour, line and marker, so they can be told apart by colour-blind readers and in
black-and-white prints.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from math import inf
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from common.errors import refusing

# Okabe and Ito, "Color Universal Design" (2008), without the yellow, which is too light for lines.
BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
ORANGE, PURPLE, SKY = "#E69F00", "#CC79A7", "#56B4E9"
GREY = "#595959"  # notes and auxiliary lines

_SERIES = [
    (BLUE, "-", "o"),
    (VERMILLION, "--", "s"),
    (GREEN, "-.", "^"),
    (PURPLE, ":", "D"),
    (BLACK, (0, (5, 1, 1, 1, 1, 1)), "v"),
    (ORANGE, (0, (8, 2)), "P"),
    (SKY, (0, (1, 1)), "X"),
]

_STYLE: Any = {  # Any: matplotlib's types allow only literal keys
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same on every machine
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 110,
    "svg.hashsalt": "rectifiers",  # without it, identifiers are random
    "svg.fonttype": "none",  # text as text: searchable, and a third of the size
}


def series(index: int) -> dict[str, Any]:
    """Colour, line and marker of series number `index` of a figure, as arguments of `plot`."""
    colour, line, marker = _SERIES[index % len(_SERIES)]
    return {"color": colour, "linestyle": line, "marker": marker}


def plain_log_axis(axes: Axes, ticks: Sequence[float] | None = None, above: float = inf) -> None:
    """A logarithmic y axis whose ticks read 0.1, 1, 10; those from `above` on add "or more"."""
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    if ticks:
        axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" + (" or more" if value >= above else ""))
    )


def mark_level(axes: Axes, level: float, label: str) -> None:
    """A dotted line across the panel, with a label above its right end."""
    axes.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.annotate(
        label,
        (0.99, level),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 5),  # above markers
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=GREY,
        bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.5, "linewidth": 0},
    )


@contextmanager
def styled() -> Iterator[None]:
    """Give the project's style to figures that are made and saved inside the context."""
    with matplotlib.rc_context(_STYLE):
        yield


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write NAME.png and NAME.svg; call inside `styled`.

    Raises UserError if the files cannot be written.
    """
    rendered = BytesIO()
    figure.savefig(rendered, format="png", metadata={"Software": None})  # no version
    with refusing(OSError, what=f"cannot write {folder / name}"):
        folder.mkdir(parents=True, exist_ok=True)
        # A palette makes the file a third as large.
        image = Image.open(rendered).convert("RGB").quantize(256)
        image.save(folder / f"{name}.png", optimize=True)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
