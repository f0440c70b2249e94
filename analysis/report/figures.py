"""The figures of numbers: training curves (Figs. 2, 3), slopes (Table 1), classes (Figs. 6, 7).

Sec. 4.1 explains the large slope of conv1 by its filters, so they are drawn with the slopes.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from analysis.report.paper import FIG6_AT_ZERO, FIG7_COUNTS, SLOPES
from analysis.report.runs import Edition, Run
from analysis.report.selection import NOT_RUN, Curve
from common.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION, mark_level, series
from data.sources.imagenet import NUM_IMAGES
from evaluation.metrics import ClassRow
from models.learned import QUANTILES, Slopes

_NUM_NAMED = 12  # classes that Fig. 6 names
_INITIAL_SLOPE = 0.25  # of PReLU, Sec. 2.1


def draw_curves(curves: Sequence[Curve], title: str, edition: Edition) -> Figure:
    """Validation error and loss over time; gradient norms by layer if all runs logged them.

    Lines are means over the seeds, bands go from the lowest seed to the highest.
    """
    has_gradients = all(run.gradients for curve in curves for run in curve.runs)
    num_panels = 3 if has_gradients else 2
    figure = _figure(title, (4.6 * num_panels, 4.6))
    panels = figure.subplots(1, num_panels)
    first = curves[0].runs[0]
    unit, unit_label = _time_unit(first, edition)
    legend_title = None
    for index, curve in enumerate(curves):
        style = series(index)
        label = curve.label + curve.chosen.remark
        if len(curve.runs) > 1:
            label += f" ({len(curve.runs)} seeds)"
            legend_title = "line: mean, band: lowest to highest seed"
        errors = [[(line.step, line.top1_error) for line in run.val] for run in curve.runs]
        losses = [run.train for run in curve.runs]
        _draw_band(panels[0], errors, unit, label=label, **style)
        _draw_band(panels[1], losses, unit, **style | {"marker": ""})
        if has_gradients:
            _draw_gradients(panels[2], curve, style, edition)
    if first.num_classes:
        chance = 100 * (1 - 1 / first.num_classes)
        mark_level(panels[0], chance, f"guessing: {chance:g} %")
        panels[0].set_ymargin(0.1)  # room for the label
    panels[0].set_title(f"top-1 error, %, {first.val[-1].images:,.0f} validation images")
    panels[0].legend(title=legend_title, title_fontsize=8.5)
    panels[1].set_title("training loss")
    for axes in panels[:2]:
        axes.set_xlabel(unit_label)
        axes.set_xlim(left=0)
    return figure


def _figure(title: str, size: tuple[float, float], fontsize: float = 12) -> Figure:
    figure = Figure(figsize=size)
    figure.suptitle(title, fontsize=fontsize)
    return figure


def _time_unit(run: Run, edition: Edition) -> tuple[float, str]:
    """Steps in a unit of the time axis, and its label: epochs if the data set's size is known."""
    if edition.is_paper:
        return NUM_IMAGES["train"] / run.batch_size, "epochs"
    return 1, f"steps (batches of {run.batch_size})"


def _draw_band(
    axes: Axes, curves: Sequence[Sequence[tuple[int, float]]], unit: float, **style: Any
) -> None:
    """Mean and range over the seeds, at the steps that all of them have."""
    by_step = [dict(points) for points in curves]
    steps = sorted(set.intersection(*map(set, by_step)))
    values = np.array([[points[step] for step in steps] for points in by_step])
    x = np.array(steps) / unit
    axes.plot(x, values.mean(0), markevery=max(1, len(steps) // 10), **style)
    if len(curves) > 1:
        axes.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.18, lw=0)


def _draw_gradients(axes: Axes, curve: Curve, style: dict[str, Any], edition: Edition) -> None:
    """Norms by layer at the first step that logged them (solid) and at the last one (hollow)."""
    gradients = [run.gradients for run in curve.runs]
    layers = [layer for layer in gradients[0] if all(layer in by_layer for by_layer in gradients)]
    unit, _ = _time_unit(curve.runs[0], edition)
    for index, face, width in ((0, style["color"], 1.6), (-1, "white", 0.9)):
        norms = np.array(
            [[by_layer[layer][index][1] for layer in layers] for by_layer in gradients]
        )
        geometric_mean = np.exp(np.log(np.maximum(norms, 1e-30)).mean(0))
        step, _ = gradients[0][layers[0]][index]
        time = f"epoch {step / unit:.2f}" if edition.is_paper else f"step {step}"
        label = f"{curve.label}{curve.chosen.remark}, {time}"
        end_style = {**style, "markerfacecolor": face, "linewidth": width}
        axes.plot(range(len(layers)), geometric_mean, label=label, **end_style)
    axes.set_title("gradient norm of the weights, by layer")
    axes.set_yscale("log")
    stage_starts = {i for i, layer in enumerate(layers) if layer.endswith("_1")}
    last_conv = {i - 1 for i, layer in enumerate(layers) if layer == "fc1"}
    ticks = sorted({0, *stage_starts, *last_conv, len(layers) - 1})
    axes.set_xticks(ticks, [layers[i] for i in ticks], rotation=60, fontsize=8.5)
    axes.legend(fontsize=8.5)


def draw_slopes(shared: Sequence[Run], channel_wise: Sequence[Run], title: str) -> Figure:
    """Slopes by layer beside Table 1's, and the distribution over the channels of each layer."""
    figure = _figure(title, (10.5, 8.4))
    top, bottom = figure.subplots(2, 1)
    layers = list(SLOPES)
    kinds = {"channel-shared": shared, "channel-wise, mean": channel_wise}
    for column, (kind, runs) in enumerate(kinds.items()):
        style = series(column)
        paper = [SLOPES[layer][column] for layer in layers]
        hollow = {**style, "markerfacecolor": "white", "linewidth": 0.8}
        top.plot(layers, paper, label=f"{kind}: paper", **hollow)
        if runs:
            ours = [np.mean([run.slopes[layer].mean for run in runs]) for layer in layers]
            top.plot(layers, ours, label=f"{kind}: ours", **style)
    top.set_title("learned slope a, by layer")
    if channel_wise:
        _draw_boxes(bottom, channel_wise[0].slopes)
    else:
        bottom.text(0.5, 0.5, NOT_RUN, ha="center", transform=bottom.transAxes, color=GREY)
    bottom.set_title(
        "channel-wise slopes: median, half of the channels (box), 5 to 95 % (whiskers)"
    )
    for axes in (top, bottom):
        _mark_initial_slope(axes)
        axes.axhline(0, color=BLACK, lw=0.8)
        axes.legend(ncols=2)
        axes.tick_params(axis="x", rotation=45)
    return figure


def _mark_initial_slope(axes: Axes) -> None:
    label = f"initial, {_INITIAL_SLOPE}"
    axes.axhline(_INITIAL_SLOPE, label=label, color=GREY, lw=0.9, ls=(0, (1, 2)))


def _draw_boxes(axes: Axes, slopes_by_layer: Mapping[str, Slopes]) -> None:
    boxes = []
    for layer in SLOPES:
        slopes = slopes_by_layer[layer]
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
    unit, unit_label = _time_unit(run, edition)
    times = np.array([0, *(step for step, _ in run.slopes_over_time)]) / unit
    figure = _figure(title, (13.8, 6.0))
    num_columns = -(-len(layers) // 2)
    panels = list(figure.subplots(2, num_columns, sharex=True, sharey=True).flat)
    for axes, layer in zip(panels, layers, strict=False):
        slopes = [by_layer[layer] for _, by_layer in run.slopes_over_time]
        for low, high, alpha in ((5, 95, 0.2), (25, 75, 0.4)):
            bounds = [
                [_INITIAL_SLOPE, *(each.quantiles[QUANTILES.index(q)] for each in slopes)]
                for q in (low, high)
            ]
            label = f"{low} to {high} % of the channels"
            axes.fill_between(times, *bounds, color=BLUE, alpha=alpha, lw=0, label=label)
        means = [_INITIAL_SLOPE, *(each.mean for each in slopes)]
        axes.plot(times, means, color=BLUE, label="mean")
        _mark_initial_slope(axes)
        if edition.is_paper and layer in SLOPES:
            value = SLOPES[layer][0 if slopes[0].count == 1 else 1]
            axes.axhline(value, color=VERMILLION, ls="--", lw=1.1, label="paper, after training")
        axes.set_title(layer)
        axes.set_xlim(left=0)
    for axes in panels[len(layers) - num_columns : len(layers)]:  # those with no panel below
        axes.set_xlabel(unit_label)
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
    figure = _figure(title, (6.4, 6.8), fontsize=10)
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
    figure, axes = _class_figure(title, len(rows))
    axes.fill_between(range(1, len(rows) + 1), errors, step="mid", color=BLUE, alpha=0.85, lw=0)
    summary = f"{(errors == 0).sum()} of {len(rows)} classes have no top-5 error"
    if edition.is_paper:
        summary += f" (paper, test set: {FIG6_AT_ZERO})"
    axes.text(0.02, 0.95, summary, transform=axes.transAxes, va="top")
    worst = [f"{row['top5_error']:5.1f} %  {class_name(row)}" for row in rows[::-1][:_NUM_NAMED]]
    text = "\n".join(["highest:", *worst])
    axes.text(0.02, 0.86, text, transform=axes.transAxes, va="top", fontsize=9, color=VERMILLION)
    axes.set_xlabel("classes, in order of their error")
    axes.set_ylabel("top-5 error, %")
    axes.set_ylim(0, max(errors.max() * 1.05, 1))
    return figure


def _class_figure(title: str, num_classes: int) -> tuple[Figure, Axes]:
    figure = _figure(title, (9, 4.8))
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.set_xlim(0.5, num_classes + 0.5)
    return figure, axes


def draw_class_differences(
    six_models: Sequence[ClassRow], baseline: Sequence[ClassRow], title: str, edition: Edition
) -> Figure:
    """Fig. 7: top-5 error of each class, six models less A, ascending. Below zero is better."""
    baseline_errors = {row["class"]: row["top5_error"] for row in baseline}
    pairs = sorted(
        (row["top5_error"] - baseline_errors[row["class"]], class_name(row)) for row in six_models
    )
    values = np.array([value for value, _ in pairs])
    figure, axes = _class_figure(title, len(values))
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
    style: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 9, "ha": "right"}
    axes.text(0.8, 0.04, "\n".join(best), va="bottom", color=GREEN, **style)
    axes.text(0.8, 0.96, "\n".join(worst), va="top", color="#9A6A00", **style)
    axes.set_xlabel("classes, in order of the difference")
    label = "top-5 error of six models (Table 7)\nless that of A, ReLU, multi-scale, points"
    axes.set_ylabel(label, fontsize=9)
    low, high = min(values.min(), -1), max(values.max(), 1)
    axes.set_ylim(low * 1.1, high * 1.5)
    return figure
