"""The figure of an architecture: variances by layer, and what Eq. 9 and 13 leave out."""

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullLocator

from analysis.propagation.study import ACT_NAMES, ACTS, INIT_NAMES, Result, Results
from analysis.propagation.theory import Conv, Direction
from common.style import GREY, plain_log_axis, series

# Forward, backward.
_SIGNALS = ("responses, Var[$y_l$]", r"gradients, Var[$\Delta x_l$]")
_UNITS = ("the image's", "the last layer's")
_EQUATIONS = ("Eq. 9", "Eq. 13")
_ARROWS = ("signal: left to right  →", "←  gradient: right to left")


def draw(results: Results, model: str) -> Figure:
    """Var[y_l] and Var[dx_l] of one model: rows ReLU, PReLU, and measured / predicted."""
    of_model = [result for result in results.values() if result.model == model]
    table, seeds = of_model[0].table, of_model[0].draws.shape[1]
    figure = Figure(figsize=(11, 13))
    figure.suptitle(
        f"Signal propagation in {model}: {len(table)} convolutions, random images, {seeds} seeds",
        fontsize=14,
    )
    grid = figure.add_gridspec(2, 1, height_ratios=[2, 1.1])
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    for act, row in zip(ACTS, above.subplots(2, 2, sharey="col"), strict=True):
        for axes, direction in zip(row, Direction, strict=True):
            axes.set_title(f"{ACT_NAMES[act]}: {_SIGNALS[direction]}", pad=20)
            axes.set_ylabel(f"variance, if {_UNITS[direction]} is 1")
            _draw_variances(axes, [r for r in of_model if r.act == act], direction)
            _mark_stages(axes, table)
    for axes, direction in zip(below.subplots(1, 2), Direction, strict=True):
        axes.set_title(f"measured / {_EQUATIONS[direction]}, for any initialisation", pad=20)
        axes.set_xlabel(f"convolution l        ({_ARROWS[direction]})")
        axes.set_ylabel("ratio of variances")
        _draw_ratios(axes, [r for r in of_model if r.init == "he"], direction)
        _mark_stages(axes, table)
    _add_legend(
        above,
        "lines: predicted by Eq. 9 and 13;  markers: measured, geometric mean over seeds",
    )
    _add_legend(
        below,
        "markers: measured, with one standard deviation over seeds;  "
        "lines: what borders and max-pools alone would give",
    )
    return figure


def _draw_variances(axes: Axes, results: list[Result], direction: Direction) -> None:
    """Lines as predicted, markers as measured."""
    for index, result in enumerate(results):
        style, layers = series(index), np.arange(1, len(result.table) + 1)
        axes.plot(layers, result.predicted[direction], **style | {"marker": ""})
        outline = {"linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 0.5}
        axes.plot(layers, result.measured[direction], **style | outline)
        axes.plot([], [], **style, label=INIT_NAMES[result.init])
    axes.set_yscale("log")
    decades = np.ptp(np.log10(axes.get_ylim()))
    step = 5 if decades > 18 else 2 if decades > 7 else 1
    axes.yaxis.set_major_locator(LogLocator(base=10.0**step))
    axes.yaxis.set_minor_locator(NullLocator())


def _draw_ratios(axes: Axes, results: list[Result], direction: Direction) -> None:
    """Markers and bars: measured / predicted over the seeds; lines: borders and pools."""
    for index, result in enumerate(results):
        style = series(len(INIT_NAMES) + index)
        layers = np.arange(1, len(result.table) + 1) + 0.16 * (2 * index - 1)
        middle, factor = (result.measured / result.predicted)[direction], result.spread[direction]
        bars = np.array([middle - middle / factor, middle * factor - middle])
        axes.errorbar(layers, middle, bars, **style | {"linestyle": "none", "elinewidth": 0.9})
        known = (result.borders * result.pools)[direction]
        axes.plot(layers, known, **style | {"marker": ""})
        axes.plot([], [], **style, label=ACT_NAMES[result.act])
    axes.axhline(1, color=GREY, linewidth=0.9)
    plain_log_axis(axes)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _mark_stages(axes: Axes, table: list[Conv]) -> None:
    """Above the panel: the filters of each stage; dotted lines: max-pools."""
    axes.set_xticks(range(1, len(table) + 1, 1 if len(table) <= 20 else 2))
    axes.set_xlim(0.4, len(table) + 0.6)
    axes.tick_params(labelbottom=True)
    pools = [place for place, conv in enumerate(table, 1) if conv.pool]
    for place in pools:
        axes.axvline(place + 0.5, color=GREY, lw=1, ls=(0, (1, 2)), label="max-pool")
    for first, last in pairwise([0, *pools, len(table)]):
        axes.text(
            (first + 1 + last) / 2,
            1.015,
            f"{table[first].layer.out_channels}{' filters' if last - first > 3 else ''}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            fontsize=8.5,
            color=GREY,
        )


def _add_legend(figure: SubFigure, title: str) -> None:
    """What is drawn in the first panel, each once, above all of them."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper center",
        ncols=len(entries),
        title=title,
    )
