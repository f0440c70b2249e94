"""Figures of the first steps: loss and features, step by step."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from analysis.start.record import Record
from analysis.start.remedies import REMEDIES
from common.style import GREY, series

_TOP = 50.0  # losses above it are drawn at it


def draw_start(groups: Sequence[Sequence[Record]], title: str) -> Figure:
    """Two columns, one for each group of records (a way to train): losses above, features below."""
    figure = Figure(figsize=(5.2 * len(groups), 7.6))
    figure.suptitle(title, fontsize=12)
    panels = figure.subplots(2, len(groups), sharey="row", squeeze=False)
    for column, records in enumerate(groups):
        above, below = panels[:, column]
        above.set_title(REMEDIES[records[0].case.remedy].title)
        _losses(above, records)
        _features(below, records)
    panels[0][0].set_ylabel("training loss of a step")
    panels[1][0].set_ylabel("rms of a layer's features, against step 1")
    for axes in panels[1]:
        axes.set_xlabel("step")
    for axes in panels.flat:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _losses(axes: Axes, records: Sequence[Record]) -> None:
    acts = list(dict.fromkeys(record.case.act for record in records))
    shown = set[str]()
    for record in records:
        act = record.case.act
        look = series(acts.index(act)) | {"marker": "", "linewidth": 1.1}
        losses = [min(loss, _TOP) if math.isfinite(loss) else _TOP for loss in record.losses]
        seeds = sum(other.case.act == act for other in records)
        label = None if act in shown else f"{act}, {seeds} seeds"
        shown.add(act)
        axes.plot(range(1, len(losses) + 1), losses, label=label, **look)
        if record.diverged:
            axes.plot(len(losses), losses[-1], marker="x", color=look["color"], markersize=8)
    guess = math.log(records[0].case.num_classes)
    axes.axhline(guess, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    axes.text(
        0.99,
        guess * 0.97,
        "guessing, ln K",
        ha="right",
        va="top",
        fontsize=8.5,
        color=GREY,
        transform=axes.get_yaxis_transform(),
    )
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks([5, 10, 20, _TOP])
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" + (" or more" if value >= _TOP else ""))
    )
    axes.legend(title="x: given up" if any(r.diverged for r in records) else None)


def _features(axes: Axes, records: Sequence[Record]) -> None:
    """Of the first seed with the last rectifier: some layers from the first to the logits."""
    act = records[-1].case.act
    record = next(r for r in records if r.case.act == act)
    convs = [name for name in record.features if name.startswith("conv")]
    steps = [probe.step for probe in record.probes]
    for place, name in enumerate([convs[0], convs[-1], "fc1", "fc2", "fc3"]):
        values = np.array([record.layer(name, i).rms for i in range(len(steps))])
        label = "logits" if name == "fc3" else name
        axes.plot(steps, values / values[0], label=label, **(series(place) | {"markersize": 3}))
    axes.axhline(1, color=GREY, linewidth=0.9)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks([0.03, 0.1, 0.3, 1, 3, 10, 30])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(title=f"{act}, seed {record.case.seed}", ncols=2)


def draw_remedies(records: Sequence[Record], title: str, mean_of: int = 10) -> Figure:
    """Loss of one network by way to train, as means of `mean_of` steps."""
    figure = Figure(figsize=(8.2, 4.8))
    axes = figure.subplots()
    axes.set_title(title)
    for place, record in enumerate(records):
        losses = np.minimum(np.nan_to_num(record.losses, nan=_TOP, posinf=_TOP), _TOP)
        ends = np.arange(mean_of, len(losses) + 1, mean_of)
        means = [losses[end - mean_of : end].mean() for end in ends]
        if record.diverged:
            ends, means = np.append(ends, len(losses)), [*means, _TOP]
        look = series(place) | {"markersize": 3}
        axes.plot(ends, means, label=REMEDIES[record.case.remedy].title, **look)
    guess = math.log(records[0].case.num_classes)
    axes.axhline(guess, color=GREY, linewidth=1, linestyle=(0, (1, 2)))
    axes.set_ylim(top=guess + 1.5)
    axes.set_xlabel("step")
    axes.set_ylabel(f"training loss, mean of {mean_of} steps")
    axes.legend(title="a line that ends at the top: diverged")
    return figure
