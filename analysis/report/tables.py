"""The paper's tables beside our numbers, as CSV and as Markdown."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from analysis.report.paper import ErrorTable, Row
from analysis.report.runs import Run
from analysis.report.selection import METRICS, Cell, Edition, cell, row_label

BLANK = "–"


@dataclass(frozen=True)
class Table:
    """A table ready to be written: Markdown cells for people, the same numbers as CSV rows."""

    name: str
    title: str
    note: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]
    rows: Sequence[dict[str, Any]]

    def markdown(self) -> str:
        """The table alone; all columns but the first are aligned to the right."""
        rule = ["---"] + ["--:"] * (len(self.head) - 1)
        lines = [self.head, rule, *self.body]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def csv(self) -> str:
        text = StringIO()
        writer = csv.DictWriter(text, list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()


def number(value: float | None, digits: int = 2) -> str:
    """For a person; None: there is none."""
    return BLANK if value is None else f"{value:.{digits}f}"


def with_spread(value: float | None, spread: float | None, digits: int = 2) -> str:
    """mean ± standard deviation over seeds."""
    tail = "" if spread is None else f" ± {spread:.{digits}f}"
    return number(value, digits) + tail


def error_table(table: ErrorTable, edition: Edition, runs: Sequence[Run], title: str) -> Table:
    """A table of errors; only the paper's edition is compared with the paper."""
    where = "" if edition.is_paper else " (ImageNet, full size)"
    own = " (scaled)" if edition.scaled else ""
    head = [*table.head, f"paper{where}: top-1 / top-5", f"ours{own}: top-1 / top-5"]
    head += ["difference"] if edition.is_paper else []
    head += ["95 % interval of ours", "images", "seeds", "trained", "hours", "commit"]
    body, rows = [], []
    for row in table.rows:
        if row.experiment is None and not edition.is_paper:
            continue
        cells = [cell(runs, edition, row, metric) for metric in METRICS]
        label = row_label(edition, table, row)
        body.append([*label, *_error_cells(row, cells, edition)])
        for paper, metric, one in zip(row.paper, METRICS, cells, strict=True):
            names = dict(zip(table.head, label, strict=True))
            rows.append({**names, "error": metric, **_error_row(paper, one, edition)})
    note = " ".join(part for part in (edition.note, table.note) if part)
    return Table(table.name + edition.suffix, title, note, head, body, rows)


def _error_cells(row: Row, cells: Sequence[Cell], edition: Edition) -> list[str]:
    paper = " / ".join(number(error) for error in row.paper)
    one = cells[0]
    blanks = [BLANK] * 6
    if one.ours is None:
        gap = [BLANK] if edition.is_paper else []
        return [paper, one.state or BLANK, *gap, *blanks]
    ours = " / ".join(with_spread(c.ours, c.spread) for c in cells)
    if one.state.startswith("partial"):
        ours += f" ({one.state})"
    differences = [_difference(p, c, edition) for p, c in zip(row.paper, cells, strict=True)]
    both = " / ".join(BLANK if d is None else f"{d:+.2f}" for d in differences)
    intervals = [f"{c.interval[0]:.2f}–{c.interval[1]:.2f}" for c in cells if c.interval]
    return [
        paper,
        ours,
        *([both] if edition.is_paper else []),
        " / ".join(intervals),
        f"{one.images:,}",
        ", ".join(str(run.seed) for run in one.runs),
        one.runs[0].length if one.runs[0].epochs else BLANK,
        hours_of(one.runs),
        ", ".join(short(commit) for commit in one.commits) or BLANK,
    ]


def short(commit: str) -> str:
    """A commit's first letters, and whether the files differed from it."""
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


def hours_of(runs: Sequence[Run]) -> str:
    """Hours of training of all these runs."""
    hours = sum(run.hours for run in runs)
    return number(hours, 1 if hours >= 10 else 2) if hours else BLANK


def _difference(paper: float | None, one: Cell, edition: Edition) -> float | None:
    known = edition.is_paper and paper is not None and one.ours is not None
    return one.ours - paper if known else None  # type: ignore[operator]


def _error_row(paper: float | None, one: Cell, edition: Edition) -> dict[str, Any]:
    low, high = one.interval or (None, None)
    return {
        "paper": paper,
        "ours": one.ours,
        "difference": _difference(paper, one, edition),
        "interval_low": low,
        "interval_high": high,
        "images": one.images or None,
        "seeds": len(one.values) or None,
        "spread": one.spread,
        "state": one.state,
        "hours": sum(run.hours for run in one.runs) or None,
        "commit": " ".join(one.commits) or None,
        "runs": " ".join(run.name for run in one.runs) or None,
    }
