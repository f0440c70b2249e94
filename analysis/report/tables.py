"""The paper's tables beside our numbers, as CSV and as Markdown."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING

from analysis.report.paper import (
    ARCHITECTURES,
    SLOPE_EXPERIMENTS,
    SLOPES,
    CurveFigure,
    ErrorTable,
    Row,
)
from analysis.report.runs import Edition, Run
from analysis.report.selection import (
    METRICS,
    NOT_RUN,
    Cell,
    Chosen,
    cells,
    choose,
    mean,
    row_label,
    spread,
)
from analysis.table import BLANK, csv_table, markdown_table
from configs.schema import TrainConfig
from configs.store import compose_config
from models.describe import describe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Table:
    """A table as it is written: Markdown cells for people, and the numbers as CSV rows."""

    name: str
    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence["DataclassInstance"]  # of one class, whose fields are the CSV's columns
    labels: Sequence[Sequence[str]] = ((),)  # the CSV's first columns: their names, and each row's

    @property
    def has_runs(self) -> bool:
        """Whether it shows anything that was trained."""
        return any(getattr(each, "runs", None) for each in self.numbers)

    def markdown(self) -> str:
        return markdown_table(self.header, self.rows)

    def csv(self) -> str:
        names, *labels = self.labels
        columns = [*names, *(field.name for field in fields(self.numbers[0]))]
        labels = labels or [()] * len(self.numbers)
        rows = zip(labels, map(astuple, self.numbers), strict=True)
        return csv_table(columns, [[*label, *numbers] for label, numbers in rows])


def number(value: float | None, digits: int = 2) -> str:
    """A number for a cell; None: there is none."""
    return BLANK if value is None else f"{value:.{digits}f}"


def with_spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation over seeds."""
    deviation = spread(values)
    tail = "" if deviation is None else f" ± {deviation:.{digits}f}"
    return number(mean(values), digits) + tail


def short(commit: str) -> str:
    """A commit's first letters, and whether the files differed from it."""
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


def hours_of(runs: Sequence[Run]) -> str:
    """Hours of training of all these runs."""
    hours = sum(run.hours for run in runs)
    return number(hours, 1 if hours >= 10 else 2) if hours else BLANK


def _names(runs: Sequence[Run]) -> str | None:
    return " ".join(run.name for run in runs) or None


def _remark(chosen: Chosen | None) -> str:
    """Stands behind a number of partial runs."""
    return f" ({chosen.partial})" if chosen and chosen.partial else ""


@dataclass(frozen=True)
class ErrorNumbers:
    """One error of a row, percent; None: there is no number."""

    error: str  # top1 | top5
    paper: float | None
    ours: float | None
    difference: float | None  # ours less the paper's; only in the paper's edition
    interval_low: float | None
    interval_high: float | None
    images: int | None
    seeds: int | None
    spread: float | None
    state: str
    hours: float | None
    commit: str | None
    runs: str | None


def error_table(table: ErrorTable, edition: Edition, runs: Sequence[Run], title: str) -> Table:
    """A table of errors; only the paper's edition is compared with the paper."""
    where = "" if edition.is_paper else " (ImageNet, full size)"
    own = " (scaled)" if edition.scaled else ""
    header = [*table.head, f"paper{where}: top-1 / top-5", f"ours{own}: top-1 / top-5"]
    header += ["difference"] if edition.is_paper else []
    header += ["95 % interval of ours", "images", "seeds", "trained", "hours", "commit"]
    rows, numbers = [], list[ErrorNumbers]()
    labels: list[tuple[str, ...]] = [table.head]
    for row in table.rows:
        if row.experiment is None and not edition.is_paper:
            continue
        label, both = row_label(edition, row), cells(runs, edition, row)
        pair = [
            _error_numbers(metric, paper, cell, edition)
            for metric, paper, cell in zip(METRICS, row.paper, both, strict=True)
        ]
        rows.append([*label, *_error_cells(row, both, pair, edition)])
        labels += [label] * len(pair)
        numbers += pair
    note = " ".join(part for part in (edition.note, table.note) if part)
    return Table(
        name=table.name + edition.suffix,
        title=title,
        note=note,
        header=header,
        rows=rows,
        numbers=numbers,
        labels=labels,
    )


def _error_numbers(metric: str, paper: float | None, cell: Cell, edition: Edition) -> ErrorNumbers:
    ours = mean(cell.values)
    low, high = cell.interval or (None, None)
    is_known = edition.is_paper and paper is not None and ours is not None
    return ErrorNumbers(
        error=metric,
        paper=paper,
        ours=ours,
        difference=ours - paper if is_known else None,  # type: ignore[operator]
        interval_low=low,
        interval_high=high,
        images=cell.images or None,
        seeds=len(cell.values) or None,
        spread=spread(cell.values),
        state=cell.state,
        hours=sum(run.hours for run in cell.runs) or None,
        commit=" ".join(cell.commits) or None,
        runs=_names(cell.runs),
    )


def _error_cells(
    row: Row, both: Sequence[Cell], pair: Sequence[ErrorNumbers], edition: Edition
) -> list[str]:
    """The Markdown cells after the label; top-1 and top-5 share each of them."""
    paper = " / ".join(number(error) for error in row.paper)
    first = both[0]
    if not first.values:
        return [paper, first.state or BLANK, *[BLANK] * (7 if edition.is_paper else 6)]
    differences = [BLANK if n.difference is None else f"{n.difference:+.2f}" for n in pair]
    return [
        paper,
        " / ".join(with_spread(cell.values) for cell in both) + _remark(first.chosen),
        *([" / ".join(differences)] if edition.is_paper else []),
        " / ".join(f"{n.interval_low:.2f}–{n.interval_high:.2f}" for n in pair),
        f"{first.images:,}",
        ", ".join(str(run.seed) for run in first.tested),
        first.tested[0].length if first.tested[0].epochs else BLANK,
        hours_of(first.tested),
        ", ".join(short(commit) for commit in first.commits) or BLANK,
    ]


@dataclass(frozen=True)
class SlopeNumbers:
    """Table 1's slope of a layer, and ours."""

    layer: str
    slopes: str  # channel-shared | channel-wise, mean
    paper: float
    ours: float | None
    difference: float | None
    spread: float | None
    seeds: int | None
    state: str
    runs: str | None


def slope_table(runs: Sequence[Run]) -> Table:
    """Table 1: learned slopes of the 14-layer model, layer by layer."""
    both = [choose(runs, Edition(), experiment) for experiment in SLOPE_EXPERIMENTS]
    kinds = ("channel-shared", "channel-wise, mean")
    header = ["layer"]
    for kind in kinds:
        header += [f"{kind}: paper", "ours", "difference"]
    rows, numbers = [], []
    for layer, papers in SLOPES.items():
        row = [layer]
        for paper, kind, chosen in zip(papers, kinds, both, strict=True):
            values = [run.slopes[layer].mean for run in chosen.runs if layer in run.slopes]
            ours = mean(values)
            difference = None if ours is None else ours - paper
            state = chosen.state if values else NOT_RUN
            row += [
                number(paper, 3),
                with_spread(values, 3) + _remark(chosen) if values else state,
                BLANK if difference is None else f"{difference:+.3f}",
            ]
            numbers.append(
                SlopeNumbers(
                    layer=layer,
                    slopes=kind,
                    paper=paper,
                    ours=ours,
                    difference=difference,
                    spread=spread(values),
                    seeds=len(values) or None,
                    state=state,
                    runs=_names(chosen.runs),
                )
            )
        rows.append(row)
    return Table(
        name="table1",
        title="Table 1: learned slopes of the 14-layer model",
        note="Read from the last checkpoint.",
        header=header,
        rows=rows,
        numbers=numbers,
    )


@dataclass(frozen=True)
class ArchitectureNumbers:
    """What Table 3 says of a model, and what we count."""

    model: str
    paper_weight_layers: int
    weight_layers: int
    paper_operations_1e10: float
    multiply_adds: int
    parameters: int


def architecture_table() -> Table:
    """Table 3: counted in the networks as they are built."""
    numbers = []
    for name, layers, operations in ARCHITECTURES:
        config = compose_config([f"model={name}"], TrainConfig)
        ours = describe(config.model, config.act, config.init, num_classes=1000, crop=224)
        counts = (ours.weight_layers, operations, ours.multiply_adds, ours.parameters)
        numbers.append(ArchitectureNumbers(name, layers, *counts))
    return Table(
        name="table3",
        title="Table 3: architectures",
        note="Counted, nothing is trained: multiply-adds of conv and fc layers for one 224 x 224 "
        "image.",
        header=[
            *("model", "weight layers: paper", "ours", "operations, x 1e10: paper", "ours"),
            *("difference", "parameters, million"),
        ],
        rows=[
            [
                n.model,
                f"{n.paper_weight_layers}",
                f"{n.weight_layers}",
                f"{n.paper_operations_1e10:.2f}",
                f"{n.multiply_adds / 1e10:.3f}",
                f"{n.multiply_adds / 1e10 - n.paper_operations_1e10:+.3f}",
                f"{n.parameters / 1e6:.2f}",
            ]
            for n in numbers
        ],
        numbers=numbers,
    )


@dataclass(frozen=True)
class CurveNumbers:
    """Where a curve ends, means over seeds; None: there is no number."""

    curve: str
    top1_error: float | None
    top1_spread: float | None
    lowest_top1_error: float | None
    images: int | None
    loss: float | None
    loss_spread: float | None
    conv1_gradient_first: float | None
    conv1_gradient_last: float | None
    seeds: int | None
    state: str
    runs: str | None


def curve_table(figure: CurveFigure, edition: Edition, runs: Sequence[Run], title: str) -> Table:
    """Where the curves of a figure end, and how large the gradients are on the way."""
    header = ["curve", "top-1 error at the end", "lowest", "images", "training loss at the end"]
    header += ["gradient norm of conv1: first", "last", "seeds", "trained", "hours"]
    rows, numbers = [], []
    for label, experiment in figure.curves:
        chosen = choose(runs, edition, experiment)
        own = [run for run in chosen.runs if run.val and run.train]
        errors = [run.val[-1].top1_error for run in own]
        losses = [run.train[-1][1] for run in own]
        norms = [run.gradients["conv1"] for run in own if run.gradients.get("conv1")]
        curve = CurveNumbers(
            curve=label,
            top1_error=mean(errors),
            top1_spread=spread(errors),
            lowest_top1_error=mean([min(v.top1_error for v in run.val) for run in own]),
            images=own[0].val[-1].images if own else None,
            loss=mean(losses),
            loss_spread=spread(losses),
            conv1_gradient_first=mean([points[0][1] for points in norms]),
            conv1_gradient_last=mean([points[-1][1] for points in norms]),
            seeds=len(own) or None,
            state=chosen.state,
            runs=_names(own),
        )
        numbers.append(curve)
        if not own:
            rows.append([label, chosen.state, *[BLANK] * (len(header) - 2)])
            continue
        ends = (curve.conv1_gradient_first, curve.conv1_gradient_last)
        rows.append(
            [
                label,
                with_spread(errors) + _remark(chosen),
                number(curve.lowest_top1_error),
                f"{curve.images:,.0f}",
                with_spread(losses, 3),
                *(BLANK if norm is None else f"{norm:.2g}" for norm in ends),
                ", ".join(str(run.seed) for run in own),
                own[0].length,
                hours_of(own),
            ]
        )
    return Table(
        name=figure.name + edition.suffix,
        title=title,
        note=f"{edition.note} The paper: {figure.claim}".strip(),
        header=header,
        rows=rows,
        numbers=numbers,
    )
