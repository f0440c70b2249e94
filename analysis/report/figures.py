"""The figures of numbers: training curves (Figs. 2, 3), slopes (Table 1), classes (Figs. 6, 7).

With the slopes go conv1's filters, of which Sec. 4.1 says why their slope is large.
"""

from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from analysis.report.paper import FIG6_AT_ZERO, FIG7_COUNTS, SLOPES, CurveFigure
from analysis.report.runs import Edition, Run
from analysis.report.selection import choose
from common.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION, mark_level, series
from data.sources.imagenet import NUM_IMAGES
from evaluation.metrics import ClassRow
from models.learned import QUANTILES

_NUM_NAMED = 12  # classes that Fig. 6 names
_INITIAL_SLOPE = 0.25  # of PReLU, Sec. 2.1
_DOTTED: dict[str, Any] = {"color": GREY, "lw": 0.9, "ls": (0, (1, 2))}


@dataclass(frozen=True)
class Curve:
    """The runs of one experiment, a seed each, drawn as one line."""

    label: str
    runs: Sequence[Run]

    @property
    def label_with_seeds(self) -> str:
        return self.label + (f" ({len(self.runs)} seeds)" if len(self.runs) > 1 else "")


def curves_of(figure: CurveFigure, edition: Edition, runs: Sequence[Run]) -> list[Curve]:
    """The curves of a figure for which there are runs."""
    curves = []
    for label, experiment in figure.curves:
        chosen = choose(runs, edition, experiment)
        if own := [run for run in chosen.runs if run.val and run.train]:
            curves.append(Curve(label + (f" ({chosen.partial})" if chosen.partial else ""), own))
    return curves


def draw_curves(curves: Sequence[Curve], title: str, edition: Edition) -> Figure:
    """Validation error and loss by time; gradient norms by layer where all runs logged them.

    Lines are means over seeds, bands go from the lowest seed to the highest.
    """
    with_gradients = all(run.gradients for curve in curves for run in curve.runs)
    num_panels = 3 if with_gradients else 2
    figure = Figure(figsize=(4.6 * num_panels, 4.6))
    figure.suptitle(title, fontsize=12)
    panels = figure.subplots(1, num_panels)
    first = curves[0].runs[0]
    per_epoch = _steps_of_an_epoch(first, edition)
    for index, curve in enumerate(curves):
        style = series(index)
        errors = [[(v.step, v.top1_error) for v in run.val] for run in curve.runs]
        losses = [run.train for run in curve.runs]
        label = curve.label_with_seeds
        _draw_band(panels[0], errors, per_epoch or 1, label=label, **style)
        _draw_band(panels[1], losses, per_epoch or 1, label=label, **style | {"marker": ""})
        if with_gradients:
            _draw_gradients(panels[2], curve, style, per_epoch)
    if first.num_classes:
        chance = 100 * (1 - 1 / first.num_classes)
        mark_level(panels[0], chance, f"guessing: {chance:g} %")
        panels[0].set_ymargin(0.1)  # room for the label
    panels[0].set_title(f"top-1 error, %, {first.val[-1].images:,.0f} validation images")
    panels[1].set_title("training loss")
    for axes in panels[:2]:
        axes.set_xlabel("epochs" if per_epoch else f"steps (batches of {first.batch_size})")
        axes.set_xlim(left=0)
    several = any(len(curve.runs) > 1 for curve in curves)
    legend_title = "line: mean, band: lowest to highest seed" if several else None
    panels[0].legend(title=legend_title, title_fontsize=8.5)
    if with_gradients:
        panels[2].set_title("gradient norm of the weights, by layer")
    return figure


def _steps_of_an_epoch(run: Run, edition: Edition) -> float | None:
    """None where the size of the data set is not known, and axes are in steps."""
    return NUM_IMAGES["train"] / run.batch_size if edition.is_paper else None


def _draw_band(
    axes: Axes, points: Sequence[Sequence[tuple[int, float]]], per_epoch: float, **style: Any
) -> None:
    """Mean and range over the seeds, at the steps that all of them have."""
    by_step = [dict(own) for own in points]
    steps = sorted(set.intersection(*map(set, by_step)))
    values = np.array([[own[step] for step in steps] for own in by_step])
    x = np.array(steps) / per_epoch
    axes.plot(x, values.mean(0), markevery=max(1, len(steps) // 10), **style)
    if len(points) > 1:
        axes.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.18, lw=0)


def _draw_gradients(
    axes: Axes, curve: Curve, style: dict[str, Any], per_epoch: float | None
) -> None:
    """By layer, where the run logged them first (solid) and last (hollow)."""
    gradients = [run.gradients for run in curve.runs]
    layers = [layer for layer in gradients[0] if all(layer in own for own in gradients)]
    for end, face in ((0, style["color"]), (-1, "white")):
        norms = np.array([[own[layer][end][1] for layer in layers] for own in gradients])
        geometric_mean = np.exp(np.log(np.maximum(norms, 1e-30)).mean(0))
        step = gradients[0][layers[0]][end][0]
        when = f"epoch {step / per_epoch:.2f}" if per_epoch else f"step {step}"
        end_style = {**style, "markerfacecolor": face, "linewidth": 1.6 if end == 0 else 0.9}
        axes.plot(range(len(layers)), geometric_mean, label=f"{curve.label}, {when}", **end_style)
    axes.set_yscale("log")
    starts = {i for i, layer in enumerate(layers) if layer.endswith("_1")}  # of stages
    last_conv = {i - 1 for i, layer in enumerate(layers) if layer == "fc1"}
    ticks = sorted({0, *starts, *last_conv, len(layers) - 1})
    axes.set_xticks(ticks, [layers[i] for i in ticks], rotation=60, fontsize=8.5)
    axes.legend(fontsize=8.5)


def draw_slopes(shared: Sequence[Run], channel_wise: Sequence[Run], title: str) -> Figure:
    """Slopes by layer beside Table 1's, and how those of a layer's channels are distributed."""
    figure = Figure(figsize=(10.5, 8.4))
    figure.suptitle(title, fontsize=12)
    above, below = figure.subplots(2, 1)
    layers = list(SLOPES)
    for column, (kind, runs) in enumerate(
        (("channel-shared", shared), ("channel-wise, mean", channel_wise))
    ):
        style = series(column)
        paper = [SLOPES[layer][column] for layer in layers]
        hollow = {**style, "markerfacecolor": "white", "linewidth": 0.8}
        above.plot(layers, paper, label=f"{kind}: paper", **hollow)
        if runs:
            ours = [np.mean([run.slopes[layer].mean for run in runs]) for layer in layers]
            above.plot(layers, ours, label=f"{kind}: ours", **style)
    above.set_title("learned slope a, by layer")
    if channel_wise:
        _draw_boxes(below, channel_wise[0], layers)
    else:
        below.text(0.5, 0.5, "not run", ha="center", transform=below.transAxes, color=GREY)
    below.set_title("channel-wise slopes: median, half of the channels (box), 5 to 95 % (whiskers)")
    for axes in (above, below):
        axes.axhline(_INITIAL_SLOPE, label=f"initial, {_INITIAL_SLOPE}", **_DOTTED)
        axes.axhline(0, color=BLACK, lw=0.8)
        axes.legend(ncols=2)
        axes.tick_params(axis="x", rotation=45)
    return figure


def _draw_boxes(axes: Axes, run: Run, layers: Sequence[str]) -> None:
    boxes = []
    for layer in layers:
        slopes = run.slopes[layer]
        q = dict(zip(QUANTILES, slopes.quantiles, strict=True))
        box = {"whislo": q[5], "q1": q[25], "med": q[50], "q3": q[75], "whishi": q[95]}
        boxes.append({**box, "mean": slopes.mean, "label": layer})
    axes.bxp(
        boxes,
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        boxprops={"facecolor": "#CFE3F1", "edgecolor": BLUE},
        medianprops={"color": BLACK},
        meanprops={"marker": "D", "markerfacecolor": VERMILLION, "markeredgecolor": VERMILLION},
    )
    axes.plot([], [], "D", color=VERMILLION, label="mean")


def draw_slopes_over_time(run: Run, title: str, edition: Edition) -> Figure:
    """A panel for each layer: the mean of its slopes over time, and where most of them lie."""
    layers = list(run.slopes_over_time[0][1])
    per_epoch = _steps_of_an_epoch(run, edition)
    steps = np.array([0, *(step for step, _ in run.slopes_over_time)]) / (per_epoch or 1)
    figure = Figure(figsize=(13.8, 6.0))
    figure.suptitle(title, fontsize=12)
    columns = -(-len(layers) // 2)
    panels = list(figure.subplots(2, columns, sharex=True, sharey=True).flat)
    for axes, layer in zip(panels, layers, strict=False):
        slopes = [by_layer[layer] for _, by_layer in run.slopes_over_time]
        for low, high, alpha in ((5, 95, 0.2), (25, 75, 0.4)):
            ends = [
                [_INITIAL_SLOPE, *(own.quantiles[QUANTILES.index(q)] for own in slopes)]
                for q in (low, high)
            ]
            label = f"{low} to {high} % of the channels"
            axes.fill_between(steps, *ends, color=BLUE, alpha=alpha, lw=0, label=label)
        means = [_INITIAL_SLOPE, *(own.mean for own in slopes)]
        axes.plot(steps, means, color=BLUE, label="mean")
        axes.axhline(_INITIAL_SLOPE, label=f"initial, {_INITIAL_SLOPE}", **_DOTTED)
        if edition.is_paper and layer in SLOPES:
            value = SLOPES[layer][0 if slopes[0].count == 1 else 1]
            axes.axhline(value, color=VERMILLION, ls="--", lw=1.1, label="paper, after training")
        axes.set_title(layer)
        axes.set_xlim(left=0)
    unit = "epochs" if per_epoch else f"steps (batches of {run.batch_size})"
    for axes in panels[len(layers) - columns : len(layers)]:  # nothing is below them
        axes.set_xlabel(unit)
        axes.tick_params(labelbottom=True)
    for axes in panels[len(layers) :]:
        axes.axis("off")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.supylabel("learned slope a", fontsize=10)
    return figure


def draw_filters(run: Run, title: str) -> Figure:
    """conv1's filters as colour pictures, after the last step."""
    with Image.open(BytesIO(b64decode(run.filters))) as picture:
        pixels = np.asarray(picture)
    figure = Figure(figsize=(6.4, 6.8))
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots()
    axes.imshow(pixels, interpolation="nearest")
    axes.axis("off")
    return figure


def class_name(row: ClassRow) -> str:
    """The first of a class's words, or its folder's name."""
    return str(row.get("words") or row["class"]).split(",")[0]


def draw_class_errors(per_class: Sequence[ClassRow], title: str, edition: Edition) -> Figure:
    """Fig. 6: top-5 error of each class, ascending; the worst classes by name."""
    rows = sorted(per_class, key=lambda row: (row["top5_error"], class_name(row)))
    errors = np.array([row["top5_error"] for row in rows])
    figure, axes = _class_figure(len(rows), title)
    axes.fill_between(range(1, len(rows) + 1), errors, step="mid", color=BLUE, alpha=0.85, lw=0)
    summary = f"{(errors == 0).sum()} of {len(rows)} classes have no top-5 error"
    summary += f" (paper, test set: {FIG6_AT_ZERO})" if edition.is_paper else ""
    axes.text(0.02, 0.95, summary, transform=axes.transAxes, va="top")
    worst = [f"{row['top5_error']:5.1f} %  {class_name(row)}" for row in rows[::-1][:_NUM_NAMED]]
    axes.text(
        0.02,
        0.86,
        "\n".join(["highest:", *worst]),
        transform=axes.transAxes,
        va="top",
        fontsize=9,
        color=VERMILLION,
    )
    axes.set_xlabel("classes, in order of their error")
    axes.set_ylabel("top-5 error, %")
    axes.set_ylim(0, max(errors.max() * 1.05, 1))
    return figure


def _class_figure(num_classes: int, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 4.8))
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.set_xlim(0.5, num_classes + 0.5)
    return figure, axes


def draw_class_differences(
    new: Sequence[ClassRow],
    old: Sequence[ClassRow],
    title: str,
    *,
    names: tuple[str, str],
    edition: Edition,
) -> Figure:
    """Fig. 7: top-5 error of each class, new less old, ascending. Below zero is better."""
    before = {row["class"]: row["top5_error"] for row in old}
    pairs = [(row["top5_error"] - before[row["class"]], class_name(row)) for row in new]
    pairs.sort()
    values = np.array([value for value, _ in pairs])
    figure, axes = _class_figure(len(values), title)
    colours = np.where(values < 0, GREEN, np.where(values > 0, ORANGE, GREY))
    axes.bar(range(1, len(values) + 1), values, width=1, color=colours)
    axes.axhline(0, color=BLACK, lw=0.8)
    counts = ((values < 0).sum(), (values == 0).sum(), (values > 0).sum())
    summary = "{} classes better, {} equal, {} worse".format(*counts)
    if edition.is_paper:
        summary += "\n(paper, against its entry of 2014: {}, {}, {})".format(*FIG7_COUNTS)
    axes.text(0.02, 0.96, summary, transform=axes.transAxes, va="top")
    best = ["best:", *(f"{value:+.1f}  {name}" for value, name in pairs[:6])]
    worst = ["worst:", *(f"{value:+.1f}  {name}" for value, name in pairs[::-1][:6])]
    text: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 9, "ha": "right"}
    axes.text(0.8, 0.04, "\n".join(best), va="bottom", color=GREEN, **text)
    axes.text(0.8, 0.96, "\n".join(worst), va="top", color="#9A6A00", **text)
    axes.set_xlabel("classes, in order of the difference")
    axes.set_ylabel(f"top-5 error of {names[0]}\nless that of {names[1]}, points", fontsize=9)
    low, high = min(values.min(), -1), max(values.max(), 1)
    axes.set_ylim(low * 1.1, high * 1.5)
    return figure
