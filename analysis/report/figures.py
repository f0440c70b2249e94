"""Learned slopes (Table 1), errors by class (Fig. 6), and what became of them (Fig. 7)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.report.paper import FIG6_AT_ZERO, FIG7_COUNTS, SLOPES
from analysis.report.read import QUANTILES
from analysis.report.runs import Run
from common.style import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION, series

PerClass = Sequence[dict[str, Any]]  # of a result file

_LABELLED = 12  # classes named at each end of a figure


def draw_slopes(shared: Sequence[Run], wise: Sequence[Run], title: str) -> Figure:
    """Slopes by layer beside Table 1's, and how those of a layer's channels are distributed."""
    figure = Figure(figsize=(10.5, 8.4))
    figure.suptitle(title, fontsize=12)
    above, below = figure.subplots(2, 1)
    layers = list(SLOPES)
    kinds = (("channel-shared", shared, 0), ("channel-wise, mean", wise, 1))
    for kind, runs, column in kinds:
        look = series(column)
        paper = [SLOPES[layer][column] for layer in layers]
        hollow = {**look, "markerfacecolor": "white", "linewidth": 0.8}
        above.plot(layers, paper, label=f"{kind}: paper", **hollow)
        if runs:
            ours = [np.mean([run.slopes[layer]["mean"] for run in runs]) for layer in layers]
            above.plot(layers, ours, label=f"{kind}: ours", **look)
    above.axhline(0.25, color=GREY, lw=0.9, ls=(0, (1, 2)), label="start, 0.25")
    above.axhline(0, color=BLACK, lw=0.8)
    above.set_title("learned slope a, by layer")
    above.legend(ncols=2)
    if wise:
        _boxes(below, wise[0], layers)
    else:
        below.text(0.5, 0.5, "not run", ha="center", transform=below.transAxes, color=GREY)
    below.set_title("channel-wise slopes: median, half of the channels (box), 5 to 95 % (whiskers)")
    for axes in (above, below):
        axes.tick_params(axis="x", rotation=45)
    return figure


def _boxes(axes: Axes, run: Run, layers: Sequence[str]) -> None:
    stats = []
    for layer in layers:
        q = dict(zip(QUANTILES, run.slopes[layer]["quantiles"], strict=True))
        box = {"whislo": q[5], "q1": q[25], "med": q[50], "q3": q[75], "whishi": q[95]}
        stats.append({**box, "mean": run.slopes[layer]["mean"], "label": layer})
    axes.bxp(
        stats,
        showfliers=False,
        showmeans=True,
        patch_artist=True,
        boxprops={"facecolor": "#CFE3F1", "edgecolor": BLUE},
        medianprops={"color": BLACK},
        meanprops={"marker": "D", "markerfacecolor": VERMILLION, "markeredgecolor": VERMILLION},
    )
    axes.plot([], [], "D", color=VERMILLION, label="mean")
    axes.axhline(0.25, color=GREY, lw=0.9, ls=(0, (1, 2)), label="start, 0.25")
    axes.axhline(0, color=BLACK, lw=0.8)
    axes.legend()


def class_name(row: dict[str, Any]) -> str:
    """The first of the words that people have for a class, or its folder's name."""
    return str(row.get("words") or row["class"]).split(",")[0]


def draw_class_errors(per_class: PerClass, title: str, paper: bool) -> Figure:
    """Fig. 6: top-5 error of each class, ascending; the worst classes by name."""
    rows = sorted(per_class, key=lambda row: (row["top5_error"], class_name(row)))
    errors = np.array([row["top5_error"] for row in rows])
    figure = Figure(figsize=(9, 4.8))
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.fill_between(range(1, len(rows) + 1), errors, step="mid", color=BLUE, alpha=0.85, lw=0)
    zero = int((errors == 0).sum())
    told = f"{zero} of {len(rows)} classes have no top-5 error"
    told += f" (paper, test set: {FIG6_AT_ZERO})" if paper else ""
    axes.text(0.02, 0.95, told, transform=axes.transAxes, va="top")
    worst = rows[-_LABELLED:][::-1]
    lines = [f"{row['top5_error']:5.1f} %  {class_name(row)}" for row in worst]
    over: dict[str, Any] = {"transform": axes.transAxes, "va": "top", "fontsize": 9}
    axes.text(0.02, 0.86, "highest:\n" + "\n".join(lines), color=VERMILLION, **over)
    axes.set_xlabel("classes, in order of their error")
    axes.set_ylabel("top-5 error, %")
    axes.set_xlim(0.5, len(rows) + 0.5)
    axes.set_ylim(0, max(errors.max() * 1.05, 1))
    return figure


def draw_class_differences(
    new: PerClass, old: PerClass, title: str, names: tuple[str, str], paper: bool
) -> Figure:
    """Fig. 7: top-5 error of each class, new less old, ascending. Below zero is better."""
    before = {row["class"]: row["top5_error"] for row in old}
    both = [(row["top5_error"] - before[row["class"]], row) for row in new]
    both.sort(key=lambda pair: (pair[0], class_name(pair[1])))
    values = np.array([value for value, _ in both])
    colours = np.where(values < 0, GREEN, np.where(values > 0, ORANGE, GREY))
    figure = Figure(figsize=(9, 4.8))
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots()
    axes.set_axisbelow(True)
    axes.bar(range(1, len(values) + 1), values, width=1, color=colours)
    axes.axhline(0, color=BLACK, lw=0.8)
    counts = ((values < 0).sum(), (values == 0).sum(), (values > 0).sum())
    told = "{} classes better, {} equal, {} worse".format(*counts)
    told += "\n(paper, against its entry of 2014: {}, {}, {})".format(*FIG7_COUNTS) if paper else ""
    axes.text(0.02, 0.96, told, transform=axes.transAxes, va="top")
    best = "\n".join(["best:", *(f"{value:+.1f}  {class_name(row)}" for value, row in both[:6])])
    worst = [f"{value:+.1f}  {class_name(row)}" for value, row in both[::-1][:6]]
    worst_text = "\n".join(["worst:", *worst])
    over: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 9}
    axes.text(0.8, 0.04, best, ha="right", va="bottom", color=GREEN, **over)
    axes.text(0.8, 0.96, worst_text, ha="right", va="top", color="#9A6A00", **over)
    axes.set_xlabel("classes, in order of the difference")
    axes.set_ylabel(f"top-5 error of {names[0]}\nless that of {names[1]}, points", fontsize=9)
    axes.set_xlim(0.5, len(values) + 0.5)
    low, high = min(values.min(), -1), max(values.max(), 1)
    axes.set_ylim(low * 1.1, high * 1.5)
    return figure
