"""The paper's tables beside our numbers, as CSV and as Markdown."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Literal

from analysis.report.paper import (
    ARCHITECTURES,
    SLOPE_EXPERIMENTS,
    SLOPES,
    CurveFigure,
    ErrorTable,
    Row,
)
from analysis.report.runs import Edition, Run
from analysis.report.selection import NOT_RUN, Chosen, Tested, choose, mean, spread, tested_runs
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


def number(value: float | None, form: str = ".2f") -> str:
    """A number for a cell; None: there is none."""
    return BLANK if value is None else format(value, form)


def with_spread(value: float | None, deviation: float | None, form: str = ".2f") -> str:
    """Mean ± standard deviation over seeds."""
    return number(value, form) + ("" if deviation is None else f" ± {deviation:{form}}")


def short(commit: str) -> str:
    """A commit's first letters, and whether the files differed from it."""
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


def hours_of(runs: Sequence[Run]) -> str:
    """Hours of training of all these runs."""
    hours = sum(run.hours for run in runs)
    return number(hours, ".1f" if hours >= 10 else ".2f") if hours else BLANK


def _names(runs: Sequence[Run]) -> str | None:
    return " ".join(run.name for run in runs) or None


def _remark(chosen: Chosen) -> str:
    """Stands behind a number of partial runs."""
    return f" ({chosen.partial})" if chosen.partial else ""


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
        tested = Tested()
        if row.experiment:
            tested = tested_runs(runs, edition, row.experiment, row.test)
        scale = None  # all combined; a scaled edition has scales of its own
        if row.scale is not None:
            scale = edition.test(row.test).scales[row.test.scales.index(row.scale)]
        label = tuple(str(scale) if text == str(row.scale) else text for text in row.label)
        pair = [
            _error_numbers(row, tested, edition, metric=metric, scale=scale) for metric in (0, 1)
        ]
        rows.append([*label, *_error_cells(pair, tested, edition)])
        labels += [label, label]
        numbers += pair
    return Table(
        name=table.name + edition.suffix,
        title=title,
        note=" ".join(filter(None, [edition.note, table.note])),
        header=header,
        rows=rows,
        numbers=numbers,
        labels=labels,
    )


def _error_numbers(
    row: Row, tested: Tested, edition: Edition, *, metric: int, scale: int | None
) -> ErrorNumbers:
    """metric: 0 top-1, 1 top-5; scale: of the test, None: all combined."""
    name, paper = ("top1", "top5")[metric], row.paper[metric]
    error: Literal["top1_error", "top5_error"] = "top5_error" if metric else "top1_error"
    ends: Literal["top1_interval", "top5_interval"] = "top5_interval" if metric else "top1_interval"
    entries = [
        result["combined"]
        if scale is None
        else next(entry for entry in result["scales"] if entry["scale"] == scale)
        for _, result in tested.results
    ]
    values = [entry[error] for entry in entries]
    ours = mean(values)
    is_compared = edition.is_paper and paper is not None and ours is not None
    return ErrorNumbers(
        error=name,
        paper=paper,
        ours=ours,
        difference=ours - paper if is_compared else None,  # type: ignore[operator]
        interval_low=mean([entry[ends][0] for entry in entries]),
        interval_high=mean([entry[ends][1] for entry in entries]),
        images=tested.results[0][1]["images"] if entries else None,
        seeds=len(values) or None,
        spread=spread(values),
        state=tested.state if row.experiment else "",
        hours=sum(run.hours for run in tested.runs) or None,
        commit=" ".join(tested.commits) or None,
        runs=_names(tested.runs),
    )


def _error_cells(pair: Sequence[ErrorNumbers], tested: Tested, edition: Edition) -> list[str]:
    """The Markdown cells after the label; top-1 and top-5 share each of them."""
    paper = " / ".join(number(each.paper) for each in pair)
    if not tested.results:
        return [paper, pair[0].state or BLANK, *[BLANK] * (7 if edition.is_paper else 6)]
    ours = " / ".join(with_spread(each.ours, each.spread) for each in pair)
    difference = " / ".join(number(each.difference, form="+.2f") for each in pair)
    return [
        paper,
        ours + _remark(tested.chosen),
        *([difference] if edition.is_paper else []),
        " / ".join(f"{each.interval_low:.2f}–{each.interval_high:.2f}" for each in pair),
        f"{pair[0].images:,}",
        ", ".join(str(run.seed) for run in tested.runs),
        tested.runs[0].length,
        hours_of(tested.runs),
        ", ".join(short(commit) for commit in tested.commits) or BLANK,
    ]


@dataclass(frozen=True)
class SlopeNumbers:
    """Table 1's slope of a layer, and ours."""

    layer: str
    slopes: str  # channel-shared | channel-wise, mean
    paper: float
    ours: float | None
    difference: float | None  # only in the paper's edition
    spread: float | None
    seeds: int | None
    state: str
    runs: str | None


def slope_table(edition: Edition, runs: Sequence[Run], title: str) -> Table:
    """Table 1: learned slopes of the 14-layer model, layer by layer."""
    both = [choose(runs, edition, experiment) for experiment in SLOPE_EXPERIMENTS]
    kinds = ("channel-shared", "channel-wise, mean")
    header = ["layer"]
    for kind in kinds:
        header += [f"{kind}: paper", "ours", *(["difference"] if edition.is_paper else [])]
    rows, numbers = [], []
    for layer, papers in SLOPES.items():
        row = [layer]
        for paper, kind, chosen in zip(papers, kinds, both, strict=True):
            values = [run.slopes[layer].mean for run in chosen.runs if layer in run.slopes]
            ours = mean(values)
            slope = SlopeNumbers(
                layer=layer,
                slopes=kind,
                paper=paper,
                ours=ours,
                difference=ours - paper if edition.is_paper and ours is not None else None,
                spread=spread(values),
                seeds=len(values) or None,
                state=chosen.state if values else NOT_RUN,
                runs=_names(chosen.runs),
            )
            text = with_spread(ours, slope.spread, ".3f") + _remark(chosen)
            row += [number(paper, ".3f"), text if values else slope.state]
            row += [number(slope.difference, "+.3f")] if edition.is_paper else []
            numbers.append(slope)
        rows.append(row)
    return Table(
        name="table1" + edition.suffix,
        title=title,
        note=f"{edition.note} Read from the last checkpoint.".strip(),
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
    header = ["model", "weight layers: paper", "ours", "operations, x 1e10: paper", "ours"]
    header += ["difference", "parameters, million"]
    numbers = []
    for name, layers, operations in ARCHITECTURES:
        config = compose_config([f"model={name}"], TrainConfig)
        ours = describe(config.model, config.act, config.init, num_classes=1000, crop=224)
        numbers.append(
            ArchitectureNumbers(
                model=name,
                paper_weight_layers=layers,
                weight_layers=ours.weight_layers,
                paper_operations_1e10=operations,
                multiply_adds=ours.multiply_adds,
                parameters=ours.parameters,
            )
        )
    return Table(
        name="table3",
        title="Table 3: architectures",
        note="Counted, nothing is trained: multiply-adds of conv and fc layers for one 224 x 224 "
        "image.",
        header=header,
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


def _curve_numbers(label: str, own: Sequence[Run], state: str) -> CurveNumbers:
    errors = [run.val[-1].top1_error for run in own]
    losses = [run.train[-1][1] for run in own]
    norms = [run.gradients["conv1"] for run in own if run.gradients.get("conv1")]
    return CurveNumbers(
        curve=label,
        top1_error=mean(errors),
        top1_spread=spread(errors),
        lowest_top1_error=mean([min(line.top1_error for line in run.val) for run in own]),
        images=own[0].val[-1].images if own else None,
        loss=mean(losses),
        loss_spread=spread(losses),
        conv1_gradient_first=mean([points[0][1] for points in norms]),
        conv1_gradient_last=mean([points[-1][1] for points in norms]),
        seeds=len(own) or None,
        state=state,
        runs=_names(own),
    )


def curve_table(figure: CurveFigure, edition: Edition, runs: Sequence[Run], title: str) -> Table:
    """Where the curves of a figure end, and how large the gradients are on the way."""
    header = ["curve", "top-1 error at the end", "lowest", "images", "training loss at the end"]
    header += ["gradient norm of conv1: first", "last", "seeds", "trained", "hours"]
    rows, numbers = [], []
    for label, experiment in figure.curves:
        chosen = choose(runs, edition, experiment)
        own = [run for run in chosen.runs if run.val and run.train]
        curve = _curve_numbers(label, own, chosen.state)
        numbers.append(curve)
        if not own:
            rows.append([label, chosen.state, *[BLANK] * (len(header) - 2)])
            continue
        rows.append(
            [
                label,
                with_spread(curve.top1_error, curve.top1_spread) + _remark(chosen),
                number(curve.lowest_top1_error),
                f"{curve.images:,.0f}",
                with_spread(curve.loss, curve.loss_spread, ".3f"),
                number(curve.conv1_gradient_first, ".2g"),
                number(curve.conv1_gradient_last, ".2g"),
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
