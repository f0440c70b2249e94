"""The paper's tables beside our numbers, as CSV and as Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Literal

from analysis.report.paper import (
    ARCHITECTURES,
    SLOPE_EXPERIMENTS,
    SLOPES,
    CurveFigure,
    ErrorTable,
    Row,
)
from analysis.report.runs import Edition, Run
from analysis.report.selection import NOT_RUN, Curve, EditionRuns, Tested
from analysis.table import BLANK, CsvRow, Table, number, short, with_spread
from configs.schema import TrainConfig
from configs.store import compose_config
from models.describe import describe


def _mean(values: Sequence[float]) -> float | None:
    """Mean over the seeds; None: there is no value."""
    return fmean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    """Standard deviation over the seeds; None: there is at most one."""
    return stdev(values) if len(values) > 1 else None


def _difference(ours: float | None, paper: float | None, edition: Edition) -> float | None:
    """Ours less the paper's; None: one is missing, or the edition may not be compared."""
    if ours is None or paper is None or not edition.is_paper:
        return None
    return ours - paper


def _names(runs: Sequence[Run]) -> str | None:
    return " ".join(run.name for run in runs) or None


def _run_cells(runs: Sequence[Run]) -> list[str]:
    """The cells for seeds, length and hours of training."""
    hours = sum(run.hours for run in runs)
    return [
        ", ".join(str(run.seed) for run in runs),
        runs[0].length,
        number(hours or None, ".1f" if hours >= 10 else ".2f"),
    ]


@dataclass(frozen=True)
class _ErrorNumbers:
    """The CSV's columns for one error of a row, percent; None: there is no number."""

    error: str  # top1 | top5
    paper: float | None
    ours: float | None
    difference: float | None
    interval_low: float | None
    interval_high: float | None
    images: int | None
    seeds: int | None
    spread: float | None
    state: str
    hours: float | None
    commit: str | None
    runs: str | None


def error_table(paper: ErrorTable, runs: EditionRuns) -> Table:
    """A table of errors; only the paper's edition shows differences from the paper."""
    edition = runs.edition
    size = "" if edition.is_paper else " (ImageNet, full size)"
    scaled = " (scaled)" if edition.scaled else ""
    header = [*paper.head, f"paper{size}: top-1 / top-5", f"ours{scaled}: top-1 / top-5"]
    header += ["difference"] if edition.is_paper else []
    header += ["95 % interval of ours", "images", "seeds", "trained", "hours", "commit"]
    table = Table(
        name=paper.name + edition.suffix,
        title=runs.title(paper.title),
        note=f"{edition.note} {paper.note}".strip(),
        header=header,
    )
    for row in paper.rows:
        if row.experiment is None and not edition.is_paper:
            continue
        tested = runs.tested(row.experiment, row.test) if row.experiment else Tested()
        scale, label = row.scale, row.label
        if scale is not None:  # a scaled edition has scales of its own
            scale = edition.test(row.test).scales[row.test.scales.index(scale)]
            label = tuple(str(scale) if text == str(row.scale) else text for text in label)
        top1 = _error_numbers("top1", row, tested, edition, scale=scale)
        top5 = _error_numbers("top5", row, tested, edition, scale=scale)
        table.rows.append([*label, *_error_cells([top1, top5], tested, edition)])
        labels = dict(zip(paper.head, label, strict=True))
        table.numbers += [labels | asdict(top1), labels | asdict(top5)]
    return table


def _error_numbers(
    error: Literal["top1", "top5"],
    row: Row,
    tested: Tested,
    edition: Edition,
    *,
    scale: int | None,
) -> _ErrorNumbers:
    """scale: shorter side; None: all scales of the test combined."""
    entries = tested.errors(scale)
    if error == "top1":
        paper = row.paper[0]
        values = [entry["top1_error"] for entry in entries]
        intervals = [entry["top1_interval"] for entry in entries]
    else:
        paper = row.paper[1]
        values = [entry["top5_error"] for entry in entries]
        intervals = [entry["top5_interval"] for entry in entries]
    return _ErrorNumbers(
        error=error,
        paper=paper,
        ours=_mean(values),
        difference=_difference(_mean(values), paper, edition),
        interval_low=_mean([low for low, _ in intervals]),
        interval_high=_mean([high for _, high in intervals]),
        images=tested.results[0]["images"] if entries else None,
        seeds=len(values) or None,
        spread=_spread(values),
        state=tested.state if row.experiment else "",
        hours=sum(run.hours for run in tested.runs) or None,
        commit=" ".join(tested.commits) or None,
        runs=_names(tested.runs),
    )


def _error_cells(pair: Sequence[_ErrorNumbers], tested: Tested, edition: Edition) -> list[str]:
    """The Markdown cells after the label, each with top-1 and top-5."""
    paper = " / ".join(number(each.paper) for each in pair)
    if not tested.results:
        return [paper, pair[0].state or BLANK]
    ours = " / ".join(with_spread(each.ours, each.spread) for each in pair)
    difference = " / ".join(number(each.difference, "+.2f") for each in pair)
    return [
        paper,
        ours + tested.remark,
        *([difference] if edition.is_paper else []),
        " / ".join(f"{each.interval_low:.2f}–{each.interval_high:.2f}" for each in pair),
        f"{pair[0].images:,}",
        *_run_cells(tested.runs),
        ", ".join(map(short, tested.commits)) or BLANK,
    ]


def slope_table(runs: EditionRuns) -> Table:
    """Table 1: learned slopes of the 14-layer model, layer by layer."""
    edition = runs.edition
    kinds = ("channel-shared", "channel-wise, mean")
    both = [runs.choose(experiment) for experiment in SLOPE_EXPERIMENTS]
    header = ["layer"]
    for kind in kinds:
        header += [f"{kind}: paper", "ours", *(["difference"] if edition.is_paper else [])]
    table = Table(
        name="table1" + edition.suffix,
        title=runs.title("Table 1: learned slopes of the 14-layer model"),
        note=f"{edition.note} Read from the last checkpoint.".strip(),
        header=header,
    )
    for layer, papers in SLOPES.items():
        cells = [layer]
        for paper, kind, chosen in zip(papers, kinds, both, strict=True):
            values = [run.slopes[layer].mean for run in chosen.runs if layer in run.slopes]
            ours, spread = _mean(values), _spread(values)
            difference = _difference(ours, paper, edition)
            state = chosen.state if values else NOT_RUN
            text = with_spread(ours, spread, ".3f") + chosen.remark if values else state
            cells += [number(paper, ".3f"), text]
            cells += [number(difference, "+.3f")] if edition.is_paper else []
            table.numbers.append(
                {
                    "layer": layer,
                    "slopes": kind,
                    "paper": paper,
                    "ours": ours,
                    "difference": difference,
                    "spread": spread,
                    "seeds": len(values) or None,
                    "state": state,
                    "runs": _names(chosen.runs),
                }
            )
        table.rows.append(cells)
    return table


def architecture_table() -> Table:
    """Table 3: counted in the networks as they are built."""
    header = ["model", "weight layers: paper", "ours", "operations, x 1e10: paper", "ours"]
    table = Table(
        name="table3",
        title="Table 3: architectures",
        note="Counted, nothing is trained: multiply-adds of conv and fc layers for one 224 x 224 "
        "image.",
        header=[*header, "difference", "parameters, million"],
    )
    for model, layers, operations in ARCHITECTURES:
        config = compose_config([f"model={model}"], TrainConfig)
        ours = describe(config.model, config.act, config.init, num_classes=1000, crop=224)
        our_operations = ours.multiply_adds / 1e10
        table.rows.append(
            [
                model,
                str(layers),
                str(ours.weight_layers),
                f"{operations:.2f}",
                f"{our_operations:.3f}",
                f"{our_operations - operations:+.3f}",
                f"{ours.parameters / 1e6:.2f}",
            ]
        )
        table.numbers.append(
            {
                "model": model,
                "paper_weight_layers": layers,
                "weight_layers": ours.weight_layers,
                "paper_operations_1e10": operations,
                "multiply_adds": ours.multiply_adds,
                "parameters": ours.parameters,
            }
        )
    return table


def curve_table(figure: CurveFigure, runs: EditionRuns) -> Table:
    """Where the curves of a figure end, and how large the gradients are on the way."""
    header = ["curve", "top-1 error at the end", "lowest", "images", "training loss at the end"]
    header += ["gradient norm of conv1: first", "last", "seeds", "trained", "hours"]
    table = Table(
        name=figure.name + runs.edition.suffix,
        title=runs.title(figure.title),
        note=f"{runs.edition.note} The paper: {figure.claim}".strip(),
        header=header,
    )
    for curve in runs.curves(figure):
        cells, numbers = _curve_row(curve)
        table.rows.append(cells)
        table.numbers.append(numbers)
    return table


def _curve_row(curve: Curve) -> tuple[list[str], CsvRow]:
    """The Markdown cells of a curve, and its CSV row."""
    runs, state = curve.runs, curve.chosen.state
    errors = [run.val[-1].top1_error for run in runs]
    error, error_spread = _mean(errors), _spread(errors)
    lowest = _mean([min(line.top1_error for line in run.val) for run in runs])
    images = runs[0].val[-1].images if runs else None
    losses = [run.train[-1][1] for run in runs]
    loss, loss_spread = _mean(losses), _spread(losses)
    norms = [run.gradients["conv1"] for run in runs if "conv1" in run.gradients]
    first_norm, last_norm = (_mean([points[end][1] for points in norms]) for end in (0, -1))
    numbers: CsvRow = {
        "curve": curve.label,
        "top1_error": error,
        "top1_spread": error_spread,
        "lowest_top1_error": lowest,
        "images": images,
        "loss": loss,
        "loss_spread": loss_spread,
        "conv1_gradient_first": first_norm,
        "conv1_gradient_last": last_norm,
        "seeds": len(runs) or None,
        "state": state,
        "runs": _names(runs),
    }
    if not runs:
        return [curve.label, state], numbers
    cells = [
        curve.label,
        with_spread(error, error_spread) + curve.chosen.remark,
        number(lowest),
        number(images, ",.0f"),
        with_spread(loss, loss_spread, ".3f"),
        number(first_norm, ".2g"),
        number(last_norm, ".2g"),
        *_run_cells(runs),
    ]
    return cells, numbers
