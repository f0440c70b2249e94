"""The page of signal propagation: what the paper states, what Eq. 9 and 13 leave out, and why."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch

from analysis.propagation.plot import draw
from analysis.propagation.study import (
    ACT_NAMES,
    ACTS,
    INIT_NAMES,
    Result,
    Results,
    Study,
    evaluate,
)
from analysis.propagation.theory import (
    BACKWARD,
    FORWARD,
    Direction,
    conv_table,
    convolutions,
)
from analysis.table import csv_table, markdown_table, span
from common.errors import refusing
from common.style import save_figure, styled
from configs.schema import TrainConfig
from configs.store import compose_config

NOT_RUN = "not run"
VGG = "vgg_b"  # the paper's example
_PRINTED_STDS = {64: "0.059", 128: "0.042", 256: "0.029", 512: "0.021"}  # by number of filters
_LAST = {FORWARD: -1, BACKWARD: 1}  # the layer that a signal reaches last: y_L, dx_2

_PAGE = """\
# Signal propagation (Sec. 2.2)

How the variance of the responses y_l changes from layer to layer in the forward pass (Eq. 9), and
that of the gradients Δx_l in the backward pass (Eq. 13), for four initialisations of the
convolutions: {inits}.
No data is needed: the images are Gaussian noise of variance 1, and so is the gradient that enters
at the output of the last convolution's rectifier. As in the paper, the fc layers are left out.
Variances are mean squares over images, channels and positions. "a ×/÷ s" is the geometric mean over
seeds, and one standard deviation as a factor.

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
  same factors for every initialisation, as follows.

## What Eq. 9 and 13 leave out

Measured / predicted at the last layer of each direction with He backward, and the factors that make
it up.

{factors}

- **Borders** (closed form). A window that reaches into the zero padding has fewer than n inputs,
  and a position near the border feeds fewer than n_hat outputs. The smaller the maps, the more
  this matters.
- **Max-pools** (measured). In the forward pass, the largest response of a window has more than the
  average square. In the backward pass, only one position of each window gets a gradient; but that
  position has the largest response, which the rectifier passes more often than the half of the time
  that Eq. 13 assumes.
- **The rest** should be 1: Eq. 9 and 13 are about the mean over draws of the weights. A single draw
  is not the mean: every layer multiplies by a random factor, which varies more the narrower the
  layer, so the spread grows with depth. The geometric mean of such products, which tables and
  figures show, lies below their mean.

## How ReLU networks scale variances

From conv1 to the last convolution, L, by Eq. 9 and 13 and as measured (geometric means over seeds).

{growth}

- He forward keeps the variance of the responses, He backward that of the gradients, however many
  layers there are. Using one rule for both directions costs one factor, whatever the depth:
  c_2 / d_L for the responses with Eq. 14, d_L / c_2 for the gradients with Eq. 10.
- Xavier halves the variance of the responses in every layer after conv1, and that of the gradients
  where a layer has as many filters as channels. In the paper, the 14-layer model trains with
  Xavier, and the 30-layer model does not.
- A std of 0.01 is that of He backward for n_hat = 2 / 0.01² = 20,000. Layers with a smaller n_hat
  weaken the gradient.
- PReLU behaves like ReLU where the rule takes a into account (Eq. 15). With Xavier and a fixed std,
  which do not, each layer keeps 1 + a² times as much of the variance.

## Figures
{figures}"""


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
    return _PAGE.format(
        inits="; ".join(INIT_NAMES.values()),
        command=study.settings.command(),
        torch=study.torch,
        claims=_table(
            ["statement", "paper", "closed form", "measured"], map(astuple, claims(results))
        ),
        disagreement=max(disagreement(results, model, act) for model in models for act in ACTS),
        factors=_factor_table(results),
        growth=_growth_table(results),
        figures="".join(
            f"\n### {model}\n\n![Predicted and measured variances by layer of {model}]({model}.png)"
            f"\n\n[SVG]({model}.svg)\n"
            for model in models
        ),
    )


def _table(header: list[str], rows: Iterable[Sequence[str]]) -> str:
    return markdown_table(header, rows, "l" * len(header)).rstrip()


def _select(results: Results, *, act: str | None = None, init: str | None = None) -> list[Result]:
    """The results with this rectifier and this initialisation (None: any)."""
    return [r for r in results.values() if act in (None, r.act) and init in (None, r.init)]


def claims(results: Results) -> list[Claim]:
    """All statements that a study can check; `not run` where VGG model B was not measured."""
    models = dict.fromkeys(result.model for result in results.values())
    return [
        *_of_vgg_b(results),
        *(claim for model in models for claim in _of_model(results, model)),
    ]


def _of_vgg_b(results: Results) -> list[Claim]:
    """The paper's example: stds by Eq. 14 and of drawn weights, and what 0.01 does instead."""
    config = compose_config([f"model={VGG}", "act=relu", "init=he"], TrainConfig)
    weights = [p for p in convolutions(config, seed=0).parameters() if p.dim() == 4]
    stds = [
        Claim(
            f"VGG model B, ReLU: std of the {filters} filters by Eq. 14",
            paper=printed,
            closed_form=f"{math.sqrt(2 / (9 * filters)):.4f}",
            measured=f"{torch.cat([w.flatten() for w in weights if len(w) == filters]).std():.4f}",
        )
        for filters, printed in _PRINTED_STDS.items()
    ]
    factor = math.prod(conv.std / 0.01 for conv in conv_table(config)[1:])
    measured = NOT_RUN
    if (VGG, "relu", "he") in results:
        he, fixed = (results[VGG, "relu", init].draws[BACKWARD] for init in ("he", "gaussian"))
        measured = f"1/({span(np.sqrt(he[:, 1] / fixed[:, 1]), '.1f')})"
    gradient = Claim(
        "VGG model B, ReLU: std of the gradient from conv10 to conv2, std 0.01 against He",
        paper="1/(1.7e4)",
        closed_form=f"1/{factor:.1f}",
        measured=measured,
    )
    return [*stds, gradient]


def _of_model(results: Results, model: str) -> list[Claim]:
    """Xavier lacks the 2 of Eq. 10 in each layer; Eq. 14 costs responses one factor in all."""
    y = {init: results[model, "relu", init].draws[FORWARD] for init in INIT_NAMES}
    table = results[model, "relu", "he"].table
    layers, channels, filters = len(table), table[1].layer.in_channels, table[-1].layer.out_channels
    backward = y["he"] / y["he_forward"]
    return [
        Claim(
            f"{model}, ReLU: std of the last response, Xavier against He forward",
            paper=f"1/sqrt(2)^{layers}",
            closed_form=f"{0.5 ** (layers / 2):.4e}",
            measured=span(np.sqrt(y["xavier"] / y["he_forward"])[:, -1], ".4e"),
        ),
        Claim(
            f"{model}, ReLU: Var[y_L] / Var[y_1], He backward against He forward",
            paper="c_2 / d_L",
            closed_form=f"{channels}/{filters} = {channels / filters:.6f}",
            measured=span(backward[:, -1] / backward[:, 0], ".6f"),
        ),
    ]


def disagreement(results: Results, model: str, act: str) -> float:
    """The largest relative difference of measured / predicted between two inits, any seed."""
    of_inits = [result for result in _select(results, act=act) if result.model == model]
    ratios = np.stack([result.draws / result.predicted[:, None] for result in of_inits])
    return float(np.nanmax(ratios.max(axis=0) / ratios.min(axis=0) - 1))


def _factor_table(results: Results) -> str:
    """measured / predicted = borders * max-pools * rest, at y_L and at dx_2."""
    header = ["model", "rectifier", "of", "measured / predicted", "borders", "max-pools"]
    header += ["the rest (mean ± standard error)"]
    rows = []
    for result in _select(results, init="he"):
        of = {FORWARD: f"Var[y_{len(result.table)}]", BACKWARD: "Var[Δx_2]"}
        for direction, i in _LAST.items():
            at = (direction, i)
            rows.append(
                [
                    result.model,
                    ACT_NAMES[result.act],
                    of[direction],
                    f"{result.measured[at] / result.predicted[at]:.3g} ×/÷ {result.spread[at]:.2f}",
                    f"{result.borders[at]:.3g}",
                    f"{result.pools[at]:.3g}",
                    f"{result.rest_mean[at]:.2f} ± {result.rest_error[at]:.2f}",
                ]
            )
    return _table(header, rows)


def _growth_table(results: Results) -> str:
    """How ReLU networks change variances from end to end."""
    header = ["model", "initialisation"]
    for of in ("Var[y_L] / Var[y_1]", "Var[Δx_2] / Var[Δx_{L+1}]"):
        header += [f"{of}: predicted", "measured"]
    rows = []
    for result in _select(results, act="relu"):
        curves = result.predicted, result.measured
        up = [f"{curve[FORWARD, -1] / curve[FORWARD, 0]:.3g}" for curve in curves]
        down = [f"{curve[BACKWARD, 1]:.3g}" for curve in curves]
        rows.append([result.model, INIT_NAMES[result.init], *up, *down])
    return _table(header, rows)


def _layers(results: Results) -> str:
    """propagation.csv: a row for each layer of each network, an empty cell for no number."""
    names = ("predicted", "measured", "spread", "borders", "pools", "rest_mean", "rest_error")
    header = ["model", "act", "init", "layer", "l", "n", "n_hat", "weight_std"]
    header += [f"{direction.name.lower()}_{name}" for direction in Direction for name in names]
    rows = []
    for key, result in results.items():
        columns = np.stack([getattr(result, name) for name in names], axis=1)  # [2, columns, L]
        for i, conv in enumerate(result.table):
            numbers = [float(f"{number:.6g}") for number in (conv.std, *columns[:, :, i].flat)]
            cells = [None if math.isnan(number) else number for number in numbers]
            rows.append(
                [*key, conv.layer.name, i + 1, conv.layer.fan_in, conv.layer.fan_out, *cells]
            )
    return csv_table(header, rows)
