"""The page of signal propagation: what the paper states, what Eq. 9 and 13 leave out, and why."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from analysis.propagation.measure import convolutions
from analysis.propagation.plot import draw
from analysis.propagation.study import (
    ACT_NAMES,
    ACTS,
    DIRECTIONS,
    INIT_NAMES,
    Result,
    Results,
    Study,
    evaluate,
    spread,
    standard_error,
    typical,
)
from analysis.propagation.theory import Floats, conv_table, gain, pool_of_independent
from analysis.table import BLANK, csv_table, markdown_table, span
from common.errors import refusing
from common.style import save_figure, styled
from configs.schema import TrainConfig
from configs.store import compose_config

NOT_RUN = "not run"
VGG = "vgg_b"  # the paper's example
_PRINTED_STDS = {64: "0.059", 128: "0.042", 256: "0.029", 512: "0.021"}  # by number of filters
_LAST = {"forward": -1, "backward": 1}  # the layer that a signal reaches last: y_L, dx_2

_PAGE = """\
# Signal propagation (Sec. 2.2)

How the variance of the responses y_l changes from layer to layer in the forward pass (Eq. 9), and
that of the gradients Δx_l in the backward pass (Eq. 13), for {num_inits} initialisations of the
convolutions: {inits}.
No data is needed: the images are Gaussian noise of variance 1, and so is the gradient that enters
behind the last convolution's rectifier. As in the paper, the fc layers are left out. Variances are
mean squares over images, channels and positions. "a ×/÷ s" is the geometric mean over seeds, and
the factor of one standard deviation.

Measured by `{command}`
(torch {torch}). From these measurements, [signals.json](signals.json),
`python scripts/reproduce.py analysis --rewrite` writes this page, its figures and
[propagation.csv](propagation.csv), which has the numbers of every layer.

## What the paper states

{claims}

- **The ratio of two initialisations is that of the closed form**, seed by seed, whatever pools and
  borders do: with the same seed, all draw the same weights up to a factor for each layer. Biases
  are 0, and rectifiers and pools satisfy f(c y) = c f(y) for c > 0, so every response is the same
  up to a factor, and the same units are active. Only float32 rounding differs: it may switch a unit
  that is almost 0, or change which of two almost equal responses wins in a pool. Between two
  initialisations of a network, measured / predicted differs by {disagreement:.1e} at most.
- **Absolute variances** are not those of Eq. 9 and 13: max-pools and borders change them, by the
  same factors for every initialisation (see below). "With pools and borders" is the closed form
  times these two factors.

## What Eq. 9 and 13 leave out

Measured / predicted at the last layer of each direction with He backward, and the factors that make
it up. They are the same for every initialisation.

{factors}

- **Borders** (closed form). A window that reaches into the zero padding has fewer than n inputs,
  and a position near the border feeds fewer than n_hat outputs. The smaller the maps, the more
  this matters.
- **Max-pools** (measured). In the forward pass, the largest response of a window has more than the
  average square. In the backward pass, only one position of each window gets a gradient; but that
  position has the largest response, which the rectifier passes more often than the half of the time
  that Eq. 13 assumes.
- **The rest** should be 1: Eq. 9 and 13 are about the mean over draws of the weights.
  {within}
- **A single draw** is not the mean: every layer multiplies by a random factor, which varies more
  the narrower the layer, so the spread grows with depth. Such products are skewed. Their geometric
  mean, which tables and figures show, lies below their mean, by about exp(-s²/2) where s is the
  standard deviation of the logarithm.
{pools}
## How ReLU networks scale variances

"Each layer": the factor of each layer after conv1 by Eq. 9 and 13, smallest to largest; "all
layers": their product; "measured": the geometric mean over seeds, with pools and borders.

{growth}

- He forward keeps the variance of the responses, He backward that of the gradients, however many
  layers there are. Using one rule for both directions costs one factor, whatever the depth:
  c_2 / d_L for the responses with Eq. 14, d_L / c_2 for the gradients with Eq. 10.
- Xavier halves the variance of the responses in every layer after conv1, and that of the gradients
  where a layer has as many filters as channels. In the paper, the 14-layer model trains with
  Xavier, and the 30-layer model does not.
- A std of {std} is that of He backward for n_hat = 2 / {std}² = {connections:,.0f}, as with
  {filters}. A layer with a smaller n_hat weakens the gradient. Of
  the networks here it is weakest in {weakest}: the std of Δx_2 is {weakest_std:.1e} of that behind
  the last convolution. The smallest positive number in fp16 is {fp16:.1e}.
- PReLU (a = {slope}) behaves like ReLU where the rule takes a into account (Eq. 15). With Xavier
  and a fixed std, which do not, each layer keeps 1 + a² = {kept:g} times as much of the variance.

## Figures
{figures}"""

_POOLS = """
A single max-pool multiplies the variances by these factors: in closed form if the responses of a
window are independent Gaussians, or all equal; and as measured at each pool with He backward
(geometric means over seeds, smallest to largest). A pool behind conv1 has no factor of the
gradient ({blank}), as there is no Δx_1.

{table}"""


@dataclass(frozen=True)
class Claim:
    """A statement of Sec. 2.2, beside what follows from the equations and what was measured."""

    statement: str
    paper: str
    closed_form: str
    measured: str


def write_page(study: Study, folder: Path) -> Path:
    """README.md, propagation.csv and MODEL.png, MODEL.svg; returns the path of the first.

    Raises UserError if they cannot be written.
    """
    results = evaluate(study)
    with styled():
        for model in study.settings.models:
            save_figure(draw(results, model), folder, model)
    with refusing(OSError, what=f"cannot write into {folder}"):
        for name, text in texts(results, study).items():
            (folder / name).write_text(text, encoding="utf-8")
    return folder / "README.md"


def texts(results: Results, study: Study) -> dict[str, str]:
    """The contents of README.md and propagation.csv."""
    return {"propagation.csv": _layers(results), "README.md": _page(results, study)}


def _page(results: Results, study: Study) -> str:
    models = study.settings.models
    stated = [[c.statement, c.paper, c.closed_form, c.measured] for c in claims(results)]
    pools = _pool_table(results)
    fixed = _select(results, act="relu", init="gaussian")
    std = fixed[0].stds[0]
    kernels = sorted({conv.kernel for result in fixed for conv in result.table[1:]})
    gradients = {result.model: typical(result.measured.backward)[1] for result in fixed}
    weakest = min(gradients, key=lambda model: gradients[model])
    slope = results[models[0], "prelu", "he"].slope
    return _PAGE.format(
        num_inits=len(INIT_NAMES),
        inits="; ".join(INIT_NAMES.values()),
        command=study.settings.command(),
        torch=study.torch,
        claims=_table(["statement", "paper", "closed form", "measured"], stated),
        disagreement=max(disagreement(results, model, act) for model in models for act in ACTS),
        factors=_factor_table(results),
        within=_within_errors(results),
        pools=_POOLS.format(table=pools, blank=BLANK) if pools else "",
        growth=_growth_table(results),
        std=std,
        connections=2 / std**2,
        filters=" or ".join(f"{2 / std**2 / k**2:,.0f} filters of {k}x{k}" for k in kernels),
        weakest=weakest,
        weakest_std=np.sqrt(gradients[weakest]),
        fp16=float(np.finfo(np.float16).smallest_subnormal),
        slope=slope,
        kept=1 + slope**2,
        figures="".join(
            f"\n### {model}\n\n![Predicted and measured variances by layer of {model}]({model}.png)"
            f"\n\n[SVG]({model}.svg)\n"
            for model in models
        ),
    )


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    return markdown_table(header, rows, "l" * len(header)).rstrip()


def _select(results: Results, *, act: str | None = None, init: str | None = None) -> list[Result]:
    """The results with this rectifier and this initialisation (None: any)."""
    return [r for r in results.values() if act in (None, r.act) and init in (None, r.init)]


def _with_spread(values: Floats) -> str:
    """The geometric mean of values [seeds] and, for several seeds, their spread."""
    middle, factor = typical(values[:, None])[0], spread(values[:, None])[0]
    return f"{middle:.3g}" if np.isnan(factor) else f"{middle:.3g} ×/÷ {factor:.2f}"


def claims(results: Results) -> list[Claim]:
    """All statements that a study can check; `not run` where VGG model B was not measured."""
    return [
        *_initial_stds(),
        *_vgg_gradients(results),
        *(_xavier(results, he) for he in _select(results, init="he_forward")),
        *(_telescope(results, he) for he in _select(results, act="relu", init="he")),
    ]


def _initial_stds() -> list[Claim]:
    """Eq. 14's std in VGG model B, and that of the weights which the project draws."""
    config = compose_config([f"model={VGG}", "act=relu", "init=he"], TrainConfig)
    convs = [m.weight for m in convolutions(config, seed=0) if isinstance(m, nn.Conv2d)]
    return [
        Claim(
            f"VGG model B, ReLU: std of the {filters} filters by Eq. 14",
            paper=printed,
            closed_form=f"{math.sqrt(2 / (9 * filters)):.4f}",
            measured=f"{torch.cat([w.flatten() for w in convs if len(w) == filters]).std():.4f}",
        )
        for filters, printed in _PRINTED_STDS.items()
    ]


def _vgg_gradients(results: Results) -> list[Claim]:
    """The product of He's std / 0.01 over conv2 .. conv10, and each of the two by itself."""
    start = "VGG model B, ReLU: std of the gradient from conv10 to conv2,"
    table = conv_table(compose_config([f"model={VGG}"], TrainConfig).model)
    factor = math.prod(math.sqrt(2 / conv.n_hat) / 0.01 for conv in table[1:])
    he, fixed = (results.get((VGG, "relu", init)) for init in ("he", "gaussian"))
    measured = NOT_RUN
    if he and fixed:
        ratio = np.sqrt(he.measured.backward[:, 1] / fixed.measured.backward[:, 1])
        measured = f"1/({span(ratio, '.1f')})"
    both = Claim(
        f"{start} std 0.01 against He",
        paper="1/(1.7e4)",
        closed_form=f"1/{factor:.1f}",
        measured=measured,
    )
    stated = [both]
    for name, result in (("He", he), ("std 0.01", fixed)):
        closed_form, measured = "", NOT_RUN
        if result:  # alone, borders and pools show
            predicted = result.predicted.backward[1]
            known = typical(result.pools.backward)[1] * result.borders.backward[1]
            closed_form = f"{predicted**0.5:.3g}; "
            closed_form += f"with pools and borders {(predicted * known) ** 0.5:.3g}"
            measured = _with_spread(np.sqrt(result.measured.backward[:, 1]))
        alone = f"{start} {name} alone"
        stated.append(Claim(alone, paper="", closed_form=closed_form, measured=measured))
    return stated


def _xavier(results: Results, he: Result) -> Claim:
    """Xavier's variance 1/n lacks Eq. 15's 2 / (1 + a^2) in each of L layers."""
    layers, is_relu = len(he.table), he.act == "relu"
    name = "ReLU" if is_relu else f"PReLU (a = {he.slope})"
    root = "1/sqrt(2)" if is_relu else "sqrt((1 + a²)/2)"
    xavier = results[he.model, he.act, "xavier"].measured.forward
    return Claim(
        f"{he.model}, {name}: std of the last response, Xavier against He forward",
        paper=f"{root}^{layers}" if is_relu else "",
        closed_form=f"{root}^{layers} = {gain(he.slope) ** (layers / 2):.4e}",
        measured=span(np.sqrt(xavier[:, -1] / he.measured.forward[:, -1]), ".4e"),
    )


def _telescope(results: Results, he: Result) -> Claim:
    """Eq. 14 instead of Eq. 10 costs the responses c_2 / d_L only, however deep the network."""
    channels, filters = he.table[1].channels, he.table[-1].filters
    backward = he.measured.forward
    forward = results[he.model, "relu", "he_forward"].measured.forward
    ratio = (backward[:, -1] / backward[:, 0]) / (forward[:, -1] / forward[:, 0])
    return Claim(
        f"{he.model}, ReLU: Var[y_L] / Var[y_1], He backward against He forward",
        paper="c_2 / d_L",
        closed_form=f"{channels}/{filters} = {channels / filters:.6f}",
        measured=span(ratio, ".6f"),
    )


def disagreement(results: Results, model: str, act: str) -> float:
    """The largest relative difference of measured / predicted between two inits, any seed."""
    worst = 0.0
    for direction in DIRECTIONS:
        of_inits = [r for r in _select(results, act=act) if r.model == model]
        ratios = np.stack([result.ratio(direction)[:, 1:] for result in of_inits])
        worst = max(worst, float((ratios.max(axis=0) / ratios.min(axis=0) - 1).max()))
    return worst


def _factor_table(results: Results) -> str:
    """measured / predicted = borders * max-pools * rest, at y_L and at dx_2."""
    rows = []
    for result in _select(results, init="he"):
        for d, i in _LAST.items():
            rest = result.rest(d)[:, [i]]
            error = f" ± {standard_error(rest)[0]:.2f}" if len(rest) > 1 else ""
            rows.append(
                [
                    result.model,
                    ACT_NAMES[result.act],
                    f"Var[y_{len(result.table)}]" if d == "forward" else "Var[Δx_2]",
                    _with_spread(result.ratio(d)[:, i]),
                    f"{result.borders[d][i]:.3g}",
                    f"{typical(result.pools[d])[i]:.3g}",
                    f"{rest.mean():.2f}{error}",
                ]
            )
    header = ["model", "rectifier", "of", "measured / predicted", "borders", "max-pools"]
    return _table([*header, "the rest (mean ± standard error)"], rows)


def _within_errors(results: Results) -> str:
    """How many means over seeds of the rest lie within two standard errors of 1."""
    rests = [r.rest(d)[:, [i]] for r in _select(results, init="he") for d, i in _LAST.items()]
    if len(rests[0]) == 1:
        return "A single seed has no standard error."
    hits = sum(bool(abs(rest.mean() - 1) <= 2 * standard_error(rest)[0]) for rest in rests)
    return f"Here {hits} of {len(rests)} lie within two standard errors of 1."


def _pool_table(results: Results) -> str:
    """What one max-pool does, beside independent and equal responses; "" without a pool."""
    by_act = {act: _select(results, act=act, init="he") for act in ACTS}
    convs = [conv for result in by_act["relu"] for conv in result.table[:-1]]
    rows = []
    for side, stride in sorted({(conv.pool, conv.pool_stride) for conv in convs if conv.pool}):
        for act, of_models in by_act.items():
            factors = np.array([f for r in of_models for f in _pool_factors(r, side, stride)])
            expected = pool_of_independent(side, stride, of_models[0].slope)
            for i, (name, equal) in enumerate((("Var[y]", 1.0), ("Var[Δx]", 1 / stride**2))):
                measured = span(factors[~np.isnan(factors[:, i]), i], ".3g")
                kind = [f"{side}x{side}, stride {stride}", ACT_NAMES[act], name]
                rows.append([*kind, f"{expected[i]:.3g}", f"{equal:.3g}", measured])
    header = ["max-pool", "rectifier", "of", "independent responses", "equal responses", "measured"]
    return _table(header, rows) + "\n" if rows else ""


def _pool_factors(result: Result, side: int, stride: int) -> Iterator[tuple[float, float]]:
    """What each such pool did to Var[y] above and to Var[dx] below it, geometric means over seeds.

    nan for the latter behind conv1, below which there is no dx.
    """
    up, down = typical(result.pools.forward), typical(result.pools.backward)
    for i, conv in enumerate(result.table[:-1]):
        if (conv.pool, conv.pool_stride) == (side, stride):
            yield up[i + 1] / up[i], down[i] / down[i + 1]


def _growth_table(results: Results) -> str:
    """How ReLU networks change variances, a layer at a time and from end to end."""
    rows = []
    for result in _select(results, act="relu"):
        names, layers = [result.model, INIT_NAMES[result.init]], len(result.table)
        up, down = result.predicted.forward, np.append(result.predicted.backward[1:], 1)
        y, dx = result.measured.forward, result.measured.backward[:, 1:]
        for of, steps, total, measured in (
            (f"Var[y_{layers}] / Var[y_1]", up[1:] / up[:-1], up[-1] / up[0], y[:, -1:] / y[:, :1]),
            (f"Var[Δx_2] / Var[Δx_{layers + 1}]", down[:-1] / down[1:], down[0], dx),
        ):
            ends = [f"{total:.3g}", f"{typical(measured)[0]:.3g}"]
            rows.append([*names, of, span(steps, ".3g"), *ends])
    return _table(["model", "initialisation", "of", "each layer", "all layers", "measured"], rows)


def _layers(results: Results) -> str:
    """propagation.csv: a row for each layer of each network, an empty cell for no number."""
    header, rows = ["model", "act", "init", "layer", "l", "n", "n_hat", "weight_std"], []
    names = ("predicted", "measured", "spread", "borders", "pools", "rest_mean", "rest_error")
    header += [f"{direction}_{name}" for direction in DIRECTIONS for name in names]
    for result in results.values():
        columns = [np.array(result.stds)]
        for d in DIRECTIONS:
            measured, rest = result.measured[d], result.rest(d)
            columns += [result.predicted[d], typical(measured), spread(measured)]
            columns += [result.borders[d], typical(result.pools[d])]
            columns += [rest.mean(axis=0), standard_error(rest)]
        for i, conv in enumerate(result.table):
            numbers = [float(f"{values[i]:.6g}") for values in columns]
            cells = [None if math.isnan(number) else number for number in numbers]
            network = [result.model, result.act, result.init]
            rows.append([*network, conv.name, i + 1, conv.n, conv.n_hat, *cells])
    return csv_table(header, rows)
