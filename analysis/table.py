"""Tables as Markdown for people and as CSV for programs, and numbers as cells."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import StringIO

BLANK = "–"  # a cell of a Markdown table that has no value
CsvRow = dict[str, str | int | float | None]  # by column


@dataclass
class Table:
    """A table of the report: Markdown cells for people, and the numbers as CSV rows."""

    name: str
    title: str
    note: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)  # a short row ends in blank cells
    numbers: list[CsvRow] = field(default_factory=list)  # all with the same columns

    @property
    def has_runs(self) -> bool:
        """Whether it shows anything that was trained."""
        return any(row.get("runs") for row in self.numbers)

    def markdown(self) -> str:
        rows = [[*row, *[BLANK] * (len(self.header) - len(row))] for row in self.rows]
        return markdown_table(self.header, rows)

    def csv(self) -> str:
        return csv_table(list(self.numbers[0]), [list(row.values()) for row in self.numbers])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """A Markdown table; `align` has l or r for each of the first columns, all others get r."""
    rules = ["---" if side == "l" else "--:" for side in align.ljust(len(header), "r")]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, rules, *rows])


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV table; None becomes an empty cell."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def number(value: float | None, form: str = ".2f") -> str:
    """A number for a cell; None: there is none."""
    return BLANK if value is None else format(value, form)


def with_spread(mean: float | None, spread: float | None, form: str = ".2f") -> str:
    """Mean ± standard deviation for a cell; None: there is no such number."""
    return number(mean, form) + ("" if spread is None else f" ± {spread:{form}}")


def short(commit: str | None) -> str:
    """The first letters of a commit for a cell, and `-dirty` if files differed from it."""
    if commit is None:
        return BLANK
    return commit[:10] + ("-dirty" if commit.endswith("-dirty") else "")


def span(values: Iterable[float], form: str) -> str:
    """The smallest and the largest value, formatted; one number if both look the same."""
    ordered = sorted(values)
    if not ordered:
        return BLANK
    low, high = format(ordered[0], form), format(ordered[-1], form)
    return low if low == high else f"{low} to {high}"
