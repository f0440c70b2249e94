"""The figure of a model: variances by layer, and what Eq. 9 and 13 leave out."""

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from analysis.propagation.study import ACT_NAMES, INIT_NAMES, Network, Result, Results
from analysis.propagation.theory import BACKWARD, FORWARD, Conv
from common.style import GREY, plain_log_axis, series

# Forward, backward.
_SIGNALS = ("responses, Var[$y_l$]", r"gradients, Var[$\Delta x_l$]")
_UNITS = ("the image's", "the last layer's")
_EQUATIONS = ("Eq. 9", "Eq. 13")
_ARROWS = ("signal: left to right  →", "←  gradient: right to left")


def draw(results: Results, model: str) -> Figure:
    """Var[y_l] and Var[dx_l] of one model: rows ReLU, PReLU, and measured / predicted."""
    first = results[Network(model, "relu", "he")]
    num_layers, num_seeds = len(first.table), first.draws.shape[1]
    figure = Figure(figsize=(11, 13))
    figure.suptitle(
        f"Signal propagation in {model}: {num_layers} convolutions, random images\n"
        f"lines: Eq. 9 and 13;  markers: measured, geometric mean over {num_seeds} seeds\n"
        "dotted: max-pools;  above each panel: number of filters"
    )
    panels = figure.subplots(3, 2)
    for direction in (FORWARD, BACKWARD):
        for axes, act in zip(panels[:2, direction], ACT_NAMES, strict=True):
            axes.set_title(f"{ACT_NAMES[act]}: {_SIGNALS[direction]}")
            axes.set_ylabel(f"variance, if {_UNITS[direction]} is 1")
            inits = {name: results[Network(model, act, init)] for init, name in INIT_NAMES.items()}
            _draw_variances(axes, inits, direction)
        axes = panels[2, direction]
        axes.set_title(
            f"measured / {_EQUATIONS[direction]}, for any initialisation\n"
            "bars: one standard deviation;  lines: borders × max-pools"
        )
        axes.set_xlabel(f"convolution l        ({_ARROWS[direction]})")
        axes.set_ylabel("ratio of variances")
        acts = {name: results[Network(model, act, "he")] for act, name in ACT_NAMES.items()}
        _draw_ratios(axes, acts, direction)
    for axes in panels.flat:
        _mark_stages(axes, first.table)
    return figure


def _draw_variances(axes: Axes, results: dict[str, Result], direction: int) -> None:
    """Lines as predicted, markers as measured."""
    for index, (label, result) in enumerate(results.items()):
        style, layers = series(index), np.arange(1, len(result.table) + 1)
        axes.plot(layers, result.predicted[direction], **style | {"marker": ""})
        outline = {"linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 0.5}
        axes.plot(layers, result.measured[direction], **style | outline)
        axes.plot([], [], **style, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend()


def _draw_ratios(axes: Axes, results: dict[str, Result], direction: int) -> None:
    """Markers and bars: measured / predicted over the seeds; lines: borders and pools."""
    for index, (label, result) in enumerate(results.items()):
        style = series(len(INIT_NAMES) + index)
        layers = np.arange(1, len(result.table) + 1) + 0.16 * (2 * index - 1)
        middle, factor = (result.measured / result.predicted)[direction], result.spread[direction]
        bars = np.array([middle - middle / factor, middle * factor - middle])
        axes.errorbar(layers, middle, bars, **style | {"linestyle": "none", "elinewidth": 0.9})
        explained = (result.borders * result.pools)[direction]
        axes.plot(layers, explained, **style | {"marker": ""})
        axes.plot([], [], **style, label=label)
    axes.axhline(1, color=GREY, linewidth=0.9)
    plain_log_axis(axes)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.legend(loc="lower right", frameon=True)


def _mark_stages(axes: Axes, table: list[Conv]) -> None:
    """Above the panel: the filters of each stage; dotted lines: max-pools."""
    axes.set_xticks(range(1, len(table) + 1, 1 if len(table) <= 20 else 2))
    axes.set_xlim(0.4, len(table) + 0.6)
    pools = [place for place, conv in enumerate(table, 1) if conv.pool]
    for place in pools:
        axes.axvline(place + 0.5, color=GREY, lw=1, ls=(0, (1, 2)))
    stages = list(pairwise([0, *pools, len(table)]))
    above = axes.secondary_xaxis("top")
    above.set_xticks(
        [(start + 1 + end) / 2 for start, end in stages],
        [str(table[start].layer.out_channels) for start, _ in stages],
    )
    above.tick_params(length=0, labelcolor=GREY)
    above.spines["top"].set_visible(False)
