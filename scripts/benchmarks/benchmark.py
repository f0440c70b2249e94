"""What all benchmarks share: command-line options, timing, and printing of rows."""

import json
import time
from abc import ABC, abstractmethod
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any, ClassVar

import torch

from configs.schema import PRECISIONS

NUM_CLASSES = 1000  # of the networks that are measured


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ArgumentTypeError("must be at least 1")
    return number


def option(default: Any, text: str, **how: Any) -> Any:
    """A field that is an option on the command line; `how`: arguments of add_argument."""
    if isinstance(default, int | tuple) and not isinstance(default, bool):
        how |= {"type": _positive, "nargs": "+" if isinstance(default, tuple) else None}
    return field(default=default, metadata={"help": text, **how})


@dataclass(frozen=True)
class Row:
    """Results of one way to do the work; subclasses add the numbers."""

    path: str


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """The options of a benchmark, and what it measures."""

    paths: ClassVar[dict[str, str]]  # path of a row -> what it is

    rounds: int = option(3, "measurements of each path")

    @abstractmethod
    def measure(self) -> Sequence[Row]:
        """Raises UserError for options that do not fit the machine."""

    def as_json(self, rows: Sequence[Row]) -> str:
        """The rows, and the part of the machine that did the work, as one JSON object."""
        options = asdict(self)
        machine = {name: options[name] for name in ("threads", "device") if name in options}
        return json.dumps({**machine, "rows": [asdict(row) for row in rows]})

    def as_table(self, rows: Sequence[Row]) -> str:
        """The options, an empty line, the names of the columns, and a line for each row."""
        options = ", ".join(f"{name} {value}" for name, value in asdict(self).items() if value)
        table = [[column.name for column in fields(rows[0])]]
        for row in rows:
            table.append(["" if value is None else str(value) for value in asdict(row).values()])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        notes = ["", *(self.paths[row.path] for row in rows)]
        lines = [options, ""]
        for (path, *numbers), note in zip(table, notes, strict=True):
            padded = [n.rjust(width) for n, width in zip(numbers, widths[1:], strict=True)]
            lines.append("  ".join([path.ljust(widths[0]), *padded, note]).rstrip())
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class NetworkBenchmark(Benchmark):
    """A benchmark of a network."""

    model: str = option("A", "a file of configs/model/")
    crop: int = option(224, "side of the training crop, pixels")
    precision: str = option("fp32", "arithmetic", choices=PRECISIONS)
    device: str = option(
        "cuda" if torch.cuda.is_available() else "cpu", "where it runs", choices=["cpu", "cuda"]
    )


def add_options(parser: ArgumentParser, kind: type[Benchmark]) -> None:
    """Add the options of a benchmark to its command."""
    for field_ in fields(kind):
        if field_.metadata:
            parser.add_argument(f"--{field_.name}", default=field_.default, **field_.metadata)


def now() -> float:
    """The clock in seconds, once the GPU has done all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(run: Callable[[], object], count: int = 1) -> float:
    """Seconds that `count` calls take, including the GPU's work."""
    start = now()
    for _ in range(count):
        run()
    return now() - start


@dataclass(frozen=True)
class Timing:
    """The seconds of a path, round by round."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """From the fastest to the slowest round, relative to the median."""
        return rounded((max(self.seconds) - min(self.seconds)) / self.median, 2)

    def speed_over(self, other: "Timing") -> float:
        """How many times as fast as another path, median of the rounds."""
        pairs = zip(other.seconds, self.seconds, strict=True)
        return rounded(median(theirs / ours for theirs, ours in pairs), 3)


def time_in_turns(paths: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """The seconds of each path in `rounds` rounds; each path returns its own.

    Paths take turns, so that other programs slow all of them down alike and the ratios within a
    round hold on a busy machine too.
    """
    results = [{path: measure() for path, measure in paths.items()} for _ in range(rounds)]
    return {path: Timing([result[path] for result in results]) for path in paths}


def rounded(number: float, digits: int) -> float:
    """Rounded to significant digits."""
    return float(f"{number:.{digits}g}")
