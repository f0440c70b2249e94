"""The figure of an architecture: variances by layer, and what Eq. 9 and 13 leave out."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

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
from common.style import GREY, plain_log_axis, series

_SIGNALS = {"forward": "responses, Var[$y_l$]", "backward": r"gradients, Var[$\Delta x_l$]"}
_UNITS = {"forward": "the image's", "backward": "the last layer's"}
_EQUATIONS = {"forward": "Eq. 9", "backward": "Eq. 13"}
_ARROWS = {"forward": "signal: left to right  →", "backward": "←  gradient: right to left"}
_POOL: dict[str, Any] = {"color": GREY, "linewidth": 1, "linestyle": (0, (1, 2))}


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
    grid = figure.add_gridspec(2, 1, height_ratios=[2, 1.1])
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    for act, panels in zip(ACTS, above.subplots(2, 2, sharey="col"), strict=True):
        for axes, direction in zip(panels, DIRECTIONS, strict=True):
            axes.set_title(f"{ACT_NAMES[act]}: {_SIGNALS[direction]}", pad=20)
            axes.set_ylabel(f"variance, if {_UNITS[direction]} is 1")
            _draw_variances(axes, [results[model, act, init] for init in INITS], direction)
            _mark_stages(axes, first.table)
    for axes, direction in zip(below.subplots(1, 2), DIRECTIONS, strict=True):
        axes.set_title(f"measured / {_EQUATIONS[direction]}, for any initialisation", pad=20)
        axes.set_xlabel(f"convolution l        ({_ARROWS[direction]})")
        axes.set_ylabel("ratio of variances")
        _draw_ratios(axes, [results[model, act, "he"] for act in ACTS], direction)
        _mark_stages(axes, first.table)
    _add_legends(above, below)
    return figure


def _layers(result: Result, direction: str) -> slice:
    """The first convolution has no gradient at its input."""
    return slice(1 if direction == "backward" else 0, len(result.table))


def _draw_variances(axes: Axes, results: list[Result], direction: str) -> None:
    """Lines as predicted, markers as measured."""
    for index, result in enumerate(results):
        style, layers = series(index), _layers(result, direction)
        numbers = np.arange(1, len(result.table) + 1)[layers]
        axes.plot(numbers, result.predicted[direction][layers], **style | {"marker": ""})
        measured = typical(result.measured[direction][:, layers])
        outline = {"linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 0.5}
        axes.plot(numbers, measured, **style | outline)
    axes.set_yscale("log")
    decades = np.ptp(np.log10(axes.get_ylim()))
    step = 5 if decades > 18 else 2 if decades > 7 else 1
    axes.yaxis.set_major_locator(LogLocator(base=10.0**step))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_ratios(axes: Axes, results: list[Result], direction: str) -> None:
    """Markers and bars: measured / predicted over the seeds; lines: borders and pools."""
    for index, result in enumerate(results):
        style, layers = series(len(INITS) + index), _layers(result, direction)
        numbers = np.arange(1, len(result.table) + 1)[layers] + 0.16 * (2 * index - 1)
        ratio = result.ratio(direction)[:, layers]
        middle, factor = typical(ratio), np.nan_to_num(spread(ratio), nan=1.0)
        bars = np.array([middle - middle / factor, middle * factor - middle])
        axes.errorbar(numbers, middle, bars, **style | {"linestyle": "none", "elinewidth": 0.9})
        known = result.borders[direction][layers] * typical(result.pools[direction][:, layers])
        axes.plot(numbers, known, **style | {"marker": ""})
    axes.axhline(1, color=GREY, linewidth=0.9)
    plain_log_axis(axes)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _mark_stages(axes: Axes, table: list[Conv]) -> None:
    """Above the panel: the filters of each stage; dotted lines: max-pools."""
    axes.set_xticks(range(1, len(table) + 1, 1 if len(table) <= 20 else 2))
    axes.set_xlim(0.4, len(table) + 0.6)
    axes.tick_params(labelbottom=True)
    start = 0
    for i, conv in enumerate(table):
        last = i == len(table) - 1
        if conv.pool and not last:
            axes.axvline(i + 1.5, **_POOL)
        if conv.pool or last:
            label = f"{conv.filters}{' filters' if i - start > 2 else ''}"
            text: dict[str, Any] = {"ha": "center", "fontsize": 8.5, "color": GREY}
            text["transform"] = axes.get_xaxis_transform()
            axes.text((start + i) / 2 + 1, 1.015, label, **text)
            start = i + 1


def _add_legends(above: SubFigure, below: SubFigure) -> None:
    """Above the panels of variances, and above those of ratios."""
    inits = [Line2D([], [], label=INIT_NAMES[init], **series(i)) for i, init in enumerate(INITS)]
    above.legend(
        handles=[*inits, Line2D([], [], label="max-pool", **_POOL)],
        loc="outside upper center",
        ncols=5,
        title="lines: predicted by Eq. 9 and 13;  markers: measured, geometric mean over seeds",
    )
    indices = range(len(INITS), len(INITS) + len(ACTS))
    below.legend(
        handles=[
            Line2D([], [], label=ACT_NAMES[act], **series(index))
            for act, index in zip(ACTS, indices, strict=True)
        ],
        loc="outside upper center",
        ncols=2,
        title="markers: measured, with one standard deviation over seeds;  "
        "lines: what borders and max-pools alone would give",
    )
