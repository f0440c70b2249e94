"""Figures of the first steps: loss and features, step by step."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.start.record import Record
from analysis.start.remedies import REMEDIES
from common.style import GREY, mark_level, plain_log_axis, series

_TOP = 50.0  # losses above it are drawn at it


def draw_start(groups: Sequence[Sequence[Record]], title: str) -> Figure:
    """A column for each group of records (of one recipe): losses above, features below.

    It shows the steps that all records were asked for.
    """
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
    common_steps = min(record.asked for records in groups for record in records)
    for axes in panels.flat:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(0.5, common_steps + 0.5)
    return figure


def _losses(axes: Axes, records: Sequence[Record]) -> None:
    acts = list(dict.fromkeys(record.case.act for record in records))
    for index, act in enumerate(acts):
        own = [record for record in records if record.case.act == act]
        style = series(index) | {"marker": "", "linewidth": 1.1}
        axes.plot([], [], label=f"{act}, {len(own)} seeds", **style)
        for record in own:
            losses = [min(loss, _TOP) if math.isfinite(loss) else _TOP for loss in record.losses]
            axes.plot(range(1, len(losses) + 1), losses, **style)
            if record.diverged:
                axes.plot(len(losses), losses[-1], marker="x", color=style["color"], markersize=8)
    mark_level(axes, math.log(records[0].case.num_classes), "guessing, ln K")
    plain_log_axis(axes, [5, 10, 20, _TOP], above=_TOP)
    axes.legend(title="x: stopped" if any(r.diverged for r in records) else None)


def _features(axes: Axes, records: Sequence[Record]) -> None:
    """Some layers, from the first to the logits, for the first seed of the last rectifier."""
    act = records[-1].case.act
    record = next(r for r in records if r.case.act == act)
    convs = [name for name in record.features if name.startswith("conv")]
    steps = [probe.step for probe in record.probes]
    for index, name in enumerate([convs[0], convs[-1], "fc1", "fc2", "fc3"]):
        values = np.array([record.layer(name, i).rms for i in range(len(steps))])
        label = "logits" if name == "fc3" else name
        axes.plot(steps, values / values[0], label=label, **(series(index) | {"markersize": 3}))
    axes.axhline(1, color=GREY, linewidth=0.9)
    plain_log_axis(axes, [0.03, 0.1, 0.3, 1, 3, 10, 30])
    axes.legend(title=f"{act}, seed {record.case.seed}", ncols=2)


def draw_remedies(records: Sequence[Record], title: str, mean_of: int = 10) -> Figure:
    """Loss of one network by recipe, as means of `mean_of` steps."""
    figure = Figure(figsize=(8.2, 4.8))
    axes = figure.subplots()
    axes.set_title(title)
    for index, record in enumerate(records):
        losses = np.minimum(np.nan_to_num(record.losses, nan=_TOP, posinf=_TOP), _TOP)
        ends = np.arange(mean_of, len(losses) + 1, mean_of)
        means = [losses[end - mean_of : end].mean() for end in ends]
        if record.diverged:
            ends, means = np.append(ends, len(losses)), [*means, _TOP]
        style = series(index) | {"markersize": 3}
        axes.plot(ends, means, label=REMEDIES[record.case.remedy].title, **style)
    guess = math.log(records[0].case.num_classes)
    mark_level(axes, guess, "guessing, ln K")
    axes.set_ylim(top=guess + 1.5)
    axes.set_xlabel("step")
    axes.set_ylabel(f"training loss, mean of {mean_of} steps")
    axes.legend(title="a line that ends at the top: diverged")
    return figure
