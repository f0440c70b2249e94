"""The tables of the page on signal propagation, from a study's results."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from analysis.propagation.study import (
    ACT_NAMES,
    ACTS,
    INIT_NAMES,
    INITS,
    Result,
    Results,
    standard_error,
    typical,
    with_spread,
)
from analysis.propagation.theory import Conv, Floats, pool_of_independent

_FAR = {"forward": -1, "backward": 1}


def markdown(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def span(values: Floats | Sequence[float], form: str) -> str:
    """The least and the greatest of some values, or what all are as printed."""
    low, high = (format(float(end), form) for end in (np.min(values), np.max(values)))
    return low if low == high else f"{low} to {high}"


def factor_table(results: Results, models: Sequence[str]) -> str:
    """measured / predicted = borders * max-pools * rest, at y_L and at dx_2."""
    header = ["model", "rectifier", "of", "measured / predicted", "borders", "max-pools"]
    body = []
    for result, d, i in _ends(results, models):
        rest = result.rest[d]
        name = "Var[Δx_2]" if d == "backward" else f"Var[y_{len(result.table)}]"
        numbers = [result.borders[d][i], typical(result.pools[d])[i]]
        error = f" ± {standard_error(rest)[i]:.2f}" if len(rest) > 1 else ""
        left = f"{rest.mean(axis=0)[i]:.2f}{error}"
        cells = [with_spread(result.ratio(d), i), *(f"{number:.3g}" for number in numbers), left]
        body.append([result.model, ACT_NAMES[result.act], name, *cells])
    return markdown([*header, "what is left (mean ± standard error)"], body)


def within_errors(results: Results, models: Sequence[str]) -> tuple[int, int]:
    """How many of the means over seeds lie within two standard errors of 1, of how many."""
    hits = [
        abs(result.rest[d].mean(axis=0)[i] - 1) <= 2 * standard_error(result.rest[d])[i]
        for result, d, i in _ends(results, models)
    ]
    return sum(map(bool, hits)), len(hits)


def _ends(results: Results, models: Sequence[str]) -> Iterator[tuple[Result, str, int]]:
    """The far ends of each way: y_L and dx_2, as a direction and a layer's place."""
    for model in models:
        for act in ACTS:
            yield from ((results[model, act, "he"], d, i) for d, i in _FAR.items())


def pool_table(results: Results, models: Sequence[str]) -> str:
    """What one max-pool does, beside independent and equal responses; "" without a pool."""
    header = ["max-pool", "rectifier", "of", "independent responses", "equal responses", "measured"]
    body = []
    for side, stride in _pool_kinds(results, models):
        for act in ACTS:
            of_models = [results[model, act, "he"] for model in models]
            measured = [f for r in of_models for f in _pool_factors(r, side, stride)]
            expected = pool_of_independent(side, stride, of_models[0].slope)
            for i, (name, equal) in enumerate((("Var[y]", 1.0), ("Var[Δx]", 1 / stride**2))):
                values = np.array([pair[i] for pair in measured])
                values = values[~np.isnan(values)]
                seen = span(values, ".3g") if values.size else "–"
                kind = f"{side}x{side}, stride {stride}"
                cells = [f"{expected[i]:.3g}", f"{equal:.3g}", seen]
                body.append([kind, ACT_NAMES[act], name, *cells])
    return markdown(header, body) if body else ""


def _pool_kinds(results: Results, models: Sequence[str]) -> list[tuple[int, int]]:
    """Side and stride of the max-pools between convolutions, each kind once."""
    tables: list[list[Conv]] = [results[model, ACTS[0], "he"].table for model in models]
    return sorted({(c.pool, c.pool_stride) for table in tables for c in table[:-1] if c.pool})


def _pool_factors(result: Result, side: int, stride: int) -> Iterator[tuple[float, float]]:
    """What each such pool did to Var[y] above and to Var[dx] below it, geometric means over seeds.

    nan for the latter behind conv1, below which there is no dx.
    """
    up, down = typical(result.pools.forward), typical(result.pools.backward)
    for i, conv in enumerate(result.table[:-1]):
        if (conv.pool, conv.pool_stride) == (side, stride):
            yield up[i + 1] / up[i], down[i] / down[i + 1]


def growth_table(results: Results, models: Sequence[str]) -> str:
    """How ReLU networks change variances, a layer at a time and from end to end."""
    header = ["model", "initialisation", "of", "a layer", "all layers", "measured"]
    body = []
    for model in models:
        for init in INITS:
            result = results[model, "relu", init]
            up, down = result.predicted.forward, result.predicted.backward
            measured = result.measured
            y_ratio = typical(measured.forward[:, -1:] / measured.forward[:, :1])[0]
            steps = up[1:] / up[:-1]
            name, layers = INIT_NAMES[init], len(result.table)
            cells = [span(steps, ".3g"), f"{up[-1] / up[0]:.3g}", f"{y_ratio:.3g}"]
            body.append([model, name, f"Var[y_{layers}] / Var[y_1]", *cells])
            steps = down[1:] / np.append(down[2:], 1)
            dx = typical(measured.backward)[1]
            cells = [span(steps, ".3g"), f"{down[1]:.3g}", f"{dx:.3g}"]
            body.append([model, name, f"Var[Δx_2] / Var[Δx_{layers + 1}]", *cells])
    return markdown(header, body)
