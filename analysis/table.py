"""Tables as Markdown for people and as CSV for programs."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO

BLANK = "–"  # a cell of a Markdown table that has no value


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """A Markdown table; `align` has l or r for each of the first columns, the others get r."""
    rules = ["---" if side == "l" else "--:" for side in align.ljust(len(header), "r")]
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, rules, *rows])


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV table; None becomes an empty cell."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def span(values: Iterable[float], form: str) -> str:
    """The smallest and the largest value as `form` prints them, one number if they look alike."""
    ordered = sorted(values)
    if not ordered:
        return BLANK
    low, high = format(ordered[0], form), format(ordered[-1], form)
    return low if low == high else f"{low} to {high}"
