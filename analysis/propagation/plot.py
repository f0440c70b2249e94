"""The figure of an architecture: variances by layer, and what Eq. 9 and 13 leave out."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.propagation.study import (
    ACT_NAMES,
    ACTS,
    DIRECTIONS,
    INIT_NAMES,
    INITS,
    Result,
    Results,
    spread,
    typical,
)
from analysis.propagation.theory import Conv
from common.style import GREY, series

_SIGNALS = {"forward": "responses, Var[$y_l$]", "backward": r"gradients, Var[$\Delta x_l$]"}
_UNITS = {"forward": "the image's", "backward": "the last layer's"}
_EQUATIONS = {"forward": "Eq. 9", "backward": "Eq. 13"}
_ARROWS = {"forward": "signal: left to right  →", "backward": "←  gradient: right to left"}


def draw(results: Results, model: str) -> Figure:
    """Var[y_l] and Var[dx_l] of one model: rows ReLU, PReLU, and measured / predicted."""
    first = results[model, ACTS[0], INITS[0]]
    seeds = len(first.measured.forward)
    figure = Figure(figsize=(11, 13))
    figure.suptitle(
        f"Signal propagation in {model}: {len(first.table)} convolutions, random images, "
        f"{seeds} seed{'s' if seeds > 1 else ''}",
        fontsize=14,
    )
    parts = figure.add_gridspec(2, 1, height_ratios=[2, 1.1])
    above, below = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
    for row, panels in enumerate(above.subplots(2, 2, sharey="col")):
        for axes, direction in zip(panels, DIRECTIONS, strict=True):
            axes.set_title(f"{ACT_NAMES[ACTS[row]]}: {_SIGNALS[direction]}", pad=20)
            axes.set_ylabel(f"variance, if {_UNITS[direction]} is 1")
            _variances(axes, [results[model, ACTS[row], init] for init in INITS], direction)
            _stages(axes, first.table)
    for axes, direction in zip(below.subplots(1, 2), DIRECTIONS, strict=True):
        axes.set_title(f"measured / {_EQUATIONS[direction]}, whichever the initialisation", pad=20)
        axes.set_xlabel(f"convolution l        ({_ARROWS[direction]})")
        axes.set_ylabel("ratio of variances")
        _ratios(axes, [results[model, act, "he"] for act in ACTS], direction)
        _stages(axes, first.table)
    _legends(above, below)
    return figure


def _layers(result: Result, direction: str) -> slice:
    """The first convolution has no gradient at its input."""
    return slice(1 if direction == "backward" else 0, len(result.table))


def _variances(axes: Axes, results: list[Result], direction: str) -> None:
    """Lines as predicted, markers as measured."""
    for place, result in enumerate(results):
        look, part = series(place), _layers(result, direction)
        numbers = np.arange(1, len(result.table) + 1)[part]
        measured = typical(result.measured[direction][:, part])
        axes.plot(
            numbers,
            result.predicted[direction][part],
            color=look["color"],
            linestyle=look["linestyle"],
        )
        axes.plot(
            numbers,
            measured,
            color=look["color"],
            marker=look["marker"],
            linestyle="none",
            markeredgecolor="white",
            markeredgewidth=0.5,
        )
    axes.set_yscale("log")
    decades = np.ptp(np.log10(axes.get_ylim()))
    step = 5 if decades > 18 else 2 if decades > 7 else 1
    axes.yaxis.set_major_locator(LogLocator(base=10.0**step))
    axes.yaxis.set_minor_locator(NullLocator())


def _ratios(axes: Axes, results: list[Result], direction: str) -> None:
    """Markers and bars: measured / predicted over the seeds; lines: borders and pools."""
    for place, result in enumerate(results):
        look, part = series(len(INITS) + place), _layers(result, direction)
        numbers = np.arange(1, len(result.table) + 1)[part] + 0.16 * (2 * place - 1)
        ratio = result.ratio(direction)[:, part]
        middle, factor = typical(ratio), np.nan_to_num(spread(ratio), nan=1.0)
        axes.errorbar(
            numbers,
            middle,
            np.array([middle - middle / factor, middle * factor - middle]),
            color=look["color"],
            marker=look["marker"],
            linestyle="none",
            elinewidth=0.9,
        )
        known = result.borders[direction][part] * typical(result.pools[direction][:, part])
        axes.plot(numbers, known, color=look["color"], linestyle=look["linestyle"])
    axes.axhline(1, color=GREY, linewidth=0.9)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _stages(axes: Axes, table: list[Conv]) -> None:
    """Above the panel: the filters of each stage; dotted lines: max-pools."""
    every = 1 if len(table) <= 20 else 2
    axes.set_xticks(range(1, len(table) + 1, every))
    axes.set_xlim(0.4, len(table) + 0.6)
    axes.tick_params(labelbottom=True)
    start = 0
    for i, conv in enumerate(table):
        last = i == len(table) - 1
        if not last and conv.pool:
            axes.axvline(i + 1.5, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
        if last or conv.pool:
            unit = " filters" if i - start > 2 else ""
            place, over = (start + i) / 2 + 1, axes.get_xaxis_transform()
            text: dict[str, Any] = {"ha": "center", "fontsize": 8.5, "color": GREY}
            axes.text(place, 1.015, f"{conv.filters}{unit}", transform=over, **text)
            start = i + 1


def _legends(above: SubFigure, below: SubFigure) -> None:
    """Over the panels of variances, and over those of ratios."""
    rules = [Line2D([], [], label=INIT_NAMES[init], **series(i)) for i, init in enumerate(INITS)]
    pool = Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (1, 2)), label="max-pool")
    title = "lines: predicted by Eq. 9 and 13;  markers: measured, geometric mean over seeds"
    above.legend(handles=[*rules, pool], loc="outside upper center", ncols=5, title=title)
    acts = [
        Line2D([], [], label=ACT_NAMES[act], **series(len(INITS) + i)) for i, act in enumerate(ACTS)
    ]
    title = (
        "markers: measured, with one standard deviation over seeds;  "
        "lines: what borders and max-pools alone would give"
    )
    below.legend(handles=acts, loc="outside upper center", ncols=2, title=title)
