"""Figs. 2 and 3: error, loss and gradients in the course of training, for several seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report.paper import CurveFigure
from analysis.report.runs import Run
from analysis.report.selection import Edition, choose
from common.style import GREY, series

TRAIN_IMAGES = 1_281_167  # of ImageNet

Curve = tuple[str, Sequence[Run]]


def curves_of(figure: CurveFigure, edition: Edition, runs: Sequence[Run]) -> list[Curve]:
    """The curves that there is something of: label, and a run for each seed."""
    found: list[Curve] = []
    for label, experiment in figure.curves:
        chosen = choose(runs, edition, experiment)
        if own := [run for run in chosen.runs if run.val and run.train]:
            part = "" if own[0].finished else f" ({chosen.state})"
            found.append((label + part, own))
    return found


def draw_curves(curves: Sequence[Curve], title: str, edition: Edition) -> Figure:
    """Validation error and loss by time; gradient norms by layer where they were kept.

    Lines are means over seeds, bands go from the lowest seed to the highest.
    """
    with_gradients = all(run.gradients for _, own in curves for run in own)
    columns = 3 if with_gradients else 2
    figure = Figure(figsize=(4.6 * columns, 4.6))
    figure.suptitle(title, fontsize=12)
    panels = figure.subplots(1, columns)
    scale = _per_epoch(curves[0][1][0], edition)
    for place, (label, own) in enumerate(curves):
        seeds = f" ({len(own)} seeds)" if len(own) > 1 else ""
        errors = [[(line["step"], line["top1_error"]) for line in run.val] for run in own]
        _band(panels[0], errors, scale, place, label + seeds)
        _band(panels[1], [run.train for run in own], scale, place, label + seeds, marker=False)
        if with_gradients:
            _gradients(panels[2], own, place, label, scale)
    classes, images = curves[0][1][0].num_classes, curves[0][1][0].val[-1]["images"]
    _guessing(panels[0], classes)
    panels[0].set_title(f"top-1 error, %, {images:,.0f} validation images")
    panels[1].set_title("training loss")
    for axes in panels[:2]:
        axes.set_xlabel("epochs" if scale else f"steps (batches of {curves[0][1][0].batch_size})")
        axes.set_xlim(left=0)
    several = any(len(own) > 1 for _, own in curves)
    legend_title = "line: mean, band: lowest to highest seed" if several else None
    panels[0].legend(title=legend_title, title_fontsize=8.5)
    if with_gradients:
        panels[2].set_title("gradient norm of the weights, by layer")
    return figure


def _per_epoch(run: Run, edition: Edition) -> float | None:
    """Steps of an epoch, where the size of the data set is known."""
    return TRAIN_IMAGES / run.batch_size if edition.is_paper else None


def _band(
    axes: Axes,
    points: Sequence[Sequence[tuple[float, float]]],
    scale: float | None,
    place: int,
    label: str,
    *,
    marker: bool = True,
) -> None:
    """Mean of the seeds, at the steps that all of them have, and their range."""
    common = set.intersection(*({step for step, _ in own} for own in points))
    steps = sorted(common)
    values = np.array([[dict(own)[step] for step in steps] for own in points])
    x = np.array(steps) / (scale or 1)
    look = series(place)
    every = max(1, len(steps) // 10)
    style = look if marker else {**look, "marker": ""}
    axes.plot(x, values.mean(0), label=label, markevery=every, **style)
    if len(points) > 1:
        axes.fill_between(x, values.min(0), values.max(0), color=look["color"], alpha=0.18, lw=0)


def _guessing(axes: Axes, classes: int) -> None:
    """A line at the error of a guess."""
    if classes:
        chance = 100 * (1 - 1 / classes)
        axes.axhline(chance, color=GREY, lw=0.9, ls=(0, (1, 2)))
        at = axes.get_yaxis_transform()
        text: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8.5, "color": GREY}
        text["bbox"] = {"facecolor": "white", "alpha": 0.7, "pad": 0.5, "linewidth": 0}
        above: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points"}  # the markers
        axes.annotate(f"guessing: {chance:g} %", (0.99, chance), xycoords=at, **above, **text)
        axes.set_ymargin(0.1)  # room for it


def _gradients(axes: Axes, own: Sequence[Run], place: int, label: str, scale: float | None) -> None:
    """By layer, at the first line of the metrics (solid) and at the last (hollow)."""
    layers = list(own[0].gradients)
    look = series(place)
    for end, face in ((0, look["color"]), (-1, "white")):
        norms = np.array([[run.gradients[layer][end][1] for layer in layers] for run in own])
        middle = np.exp(np.log(np.maximum(norms, 1e-30)).mean(0))
        step = own[0].gradients[layers[0]][end][0]
        when = f"epoch {step / scale:.2f}" if scale else f"step {step}"
        style = {**look, "markerfacecolor": face, "linewidth": 1.6 if end == 0 else 0.9}
        axes.plot(range(len(layers)), middle, label=f"{label}, {when}", **style)
    axes.set_yscale("log")
    ends = {i for i, layer in enumerate(layers) if layer.endswith("_1")}
    ends |= {i - 1 for i, layer in enumerate(layers) if layer == "fc1"}
    ticks = sorted({0, *ends, len(layers) - 1})
    axes.set_xticks(ticks, [layers[i] for i in ticks], rotation=60, fontsize=8.5)
    axes.legend(fontsize=8.5)
