"""Writes a study of signal propagation: tables, figures, and a page that explains them."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from analysis.propagation.claims import Claim
from analysis.propagation.page import page
from analysis.propagation.plot import draw
from analysis.propagation.study import (
    ACT_NAMES,
    ACTS,
    DIRECTIONS,
    INIT_NAMES,
    INITS,
    Result,
    Results,
    Study,
    spread,
    standard_error,
    typical,
    with_spread,
)
from analysis.propagation.summary import markdown
from common.errors import refusing
from common.style import save_figure, styled

_TITLES = {"forward": "Var[y_l] (Eq. 9)", "backward": "Var[dx_l] (Eq. 13)"}


def write_report(results: Results, study: Study, claims: Sequence[Claim], folder: Path) -> None:
    """README.md, propagation.csv, propagation.md and MODEL.png, MODEL.svg in the folder.

    Raises UserError if they cannot be written.
    """
    with styled():
        for model in dict.fromkeys(study.settings.models):
            save_figure(draw(results, model), folder, model)
    with refusing(OSError, what=f"cannot write into {folder}"):
        for name, text in texts(results, study, claims).items():
            (folder / name).write_text(text, encoding="utf-8")


def texts(results: Results, study: Study, claims: Sequence[Claim]) -> dict[str, str]:
    """The contents of README.md, propagation.csv and propagation.md."""
    return {
        "propagation.csv": _csv(rows(results)),
        "propagation.md": _tables(results, list(dict.fromkeys(study.settings.models))),
        "README.md": page(results, study, claims),
    }


def rows(results: Results) -> list[dict[str, Any]]:
    """A row for each layer of each network; None where there is no number."""
    return [row for result in results.values() for row in _layer_rows(result)]


def _layer_rows(result: Result) -> Iterable[dict[str, Any]]:
    columns: dict[str, np.ndarray[Any, Any]] = {}
    for d in DIRECTIONS:
        columns |= {
            f"{d}_predicted": result.predicted[d],
            f"{d}_measured": typical(result.measured[d]),
            f"{d}_spread": spread(result.measured[d]),
            f"{d}_borders": result.borders[d],
            f"{d}_pools": typical(result.pools[d]),
            f"{d}_rest_mean": result.rest[d].mean(axis=0),
            f"{d}_rest_error": standard_error(result.rest[d]),
        }
    names = {"model": result.model, "act": result.act, "init": result.init}
    for i, (conv, std) in enumerate(zip(result.table, result.stds, strict=True)):
        layer = {"layer": conv.name, "l": i + 1, "n": conv.n, "n_hat": conv.n_hat}
        numbers = {key: float(f"{values[i]:.6g}") for key, values in columns.items()}
        known = {key: None if np.isnan(number) else number for key, number in numbers.items()}
        yield {**names, **layer, "weight_std": float(f"{std:.6g}"), **known}


def _csv(table: Sequence[dict[str, Any]]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _tables(results: Results, models: Sequence[str]) -> str:
    """Every layer of every network: predicted, and measured with its spread over seeds."""
    parts = ["# Variances by layer\n\nIn each cell: predicted, measured ×/÷ spread."]
    for model in models:
        for act in ACTS:
            of_inits = [results[model, act, init] for init in INITS]
            for d in DIRECTIONS:
                title = f"## {model}, {ACT_NAMES[act]}: {_TITLES[d]}"
                header = ["layer", *(INIT_NAMES[init] for init in INITS)]
                cells = [_cells(result, d) for result in of_inits]
                names = [conv.name for conv in of_inits[0].table]
                body = list(zip(names, *cells, strict=True))[d == "backward" :]
                parts += [title, markdown(header, body)]
    return "\n\n".join(parts) + "\n"


def _cells(result: Result, direction: str) -> list[str]:
    predicted, measured = result.predicted[direction], result.measured[direction]
    return [f"{p:.3g}, {with_spread(measured, i)}" for i, p in enumerate(predicted)]
