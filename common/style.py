"""How every figure looks: colours that all eyes tell apart, also in print, and files that repeat.

Each series differs in colour, line and marker at once, so that it survives a black-and-white print.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")

from matplotlib.figure import Figure

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

_STYLE: Any = {  # keys are literals to matplotlib's own types
    "font.family": "DejaVu Sans",  # matplotlib's own: the same on every machine
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
    "svg.hashsalt": "rectifiers",  # else identifiers are random
    "svg.fonttype": "none",  # text stays text: a third of the size, and it can be searched
}


def series(place: int) -> dict[str, Any]:
    """Colour, line and marker of the place-th series of a figure, for `plot`."""
    colour, line, marker = _SERIES[place % len(_SERIES)]
    return {"color": colour, "linestyle": line, "marker": marker}


@contextmanager
def styled() -> Iterator[None]:
    """Inside, figures made and saved have the project's style."""
    with matplotlib.rc_context(_STYLE):
        yield


def save_figure(figure: Figure, folder: Path, name: str, *, colours: int | None = 256) -> None:
    """Write NAME.png and NAME.svg, the same bytes for the same figure; call inside `styled`.

    colours: of the PNG's palette, which makes it a third as large; None for photographs. Raises
    UserError if the files cannot be written.
    """
    # Neither the time nor matplotlib's version goes into the files.
    drawn = BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    picture = Image.open(drawn).convert("RGB")
    with refusing(OSError, what=f"cannot write {folder / name}"):
        folder.mkdir(parents=True, exist_ok=True)
        (picture.quantize(colours) if colours else picture).save(
            folder / f"{name}.png", optimize=True
        )
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
