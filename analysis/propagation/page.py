"""The page of signal propagation: what the paper states, what Eq. 9 and 13 leave out, and why."""

import math
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import nn

from analysis.propagation.measure import convolutions
from analysis.propagation.plot import draw
from analysis.propagation.study import ACT_NAMES, INIT_NAMES, Network, Results, Study, evaluate
from analysis.propagation.theory import BACKWARD, FORWARD, conv_table
from analysis.table import csv_table, markdown_table, span
from common.errors import refusing
from common.style import save_figure, styled

NOT_RUN = "not run"
VGG = "vgg_b"  # the paper's example
_PRINTED_STDS = {64: "0.059", 128: "0.042", 256: "0.029", 512: "0.021"}  # by number of filters

_PAGE = """\
# Signal propagation (Sec. 2.2)

How the variance of the responses y_l changes from layer to layer in the forward pass (Eq. 9), and
that of the gradients Δx_l in the backward pass (Eq. 13), for four initialisations of the
convolutions: {inits}.
The images are Gaussian noise of variance 1, and so is the gradient at the output of the last
convolution's rectifier. As in the paper, the fc layers are left out. Variances are mean squares
over images, channels and positions. "a ×/÷ s" is the geometric mean over seeds, and one standard
deviation as a factor.

Measured by `python scripts/reproduce.py analysis --models {names} --crop {settings.crop} \
--batch {settings.batch} --seeds {settings.seeds}`
(torch {torch}). From these measurements, [signals.json](signals.json),
`python scripts/reproduce.py analysis --rewrite` writes this page, its figures and
[propagation.csv](propagation.csv), which has the numbers of every layer.

## What the paper states

{claims}
The ratio of two initialisations is that of the closed form, seed by seed. With the same seed, all
draw the same weights up to a factor for each layer. Biases are 0, and rectifiers and pools satisfy
f(c y) = c f(y) for c > 0, so every response is the same up to a factor. Only float32 rounding
differs: between two initialisations of a network, measured / predicted differs by
{disagreement:.1e} at most.

## What Eq. 9 and 13 leave out

Borders and max-pools change variances by the same factors for every initialisation. Measured /
predicted with He backward, at the layer that the signal reaches last, is a product of:

{factors}
- **Borders** (closed form). A window that reaches into the zero padding has fewer than n inputs,
  and a position near the border feeds fewer than n_hat outputs. The smaller the maps, the more
  this matters.
- **Max-pools** (measured). In the forward pass, the largest response of a window has more than the
  average square. In the backward pass, only one position of each window gets a gradient. Its
  response is the largest, so the rectifier passes the gradient more often than Eq. 13 assumes,
  which is half of the time.
- **The rest** should be 1 on average: Eq. 9 and 13 predict the mean over draws of the weights. In
  a single draw, each layer multiplies the variance by a random factor, which varies more in
  narrower layers, so the spread grows with depth. The geometric mean of such products, which tables
  and figures show, lies below their mean.

## How ReLU networks scale variances

From conv1 to the last convolution, L, by Eq. 9 and 13 and as measured (geometric means over seeds).

{growth}
- He forward keeps the variance of the responses, He backward that of the gradients, at any depth.
  Using one rule for both directions costs a single factor: c_2 / d_L for the responses with Eq. 14,
  d_L / c_2 for the gradients with Eq. 10.
- Xavier halves the variance of the responses in every layer after conv1, and that of the gradients
  where a layer has as many filters as channels. In the paper, the 14-layer model trains with
  Xavier, and the 30-layer model does not.
- A std of 0.01 is that of He backward for n_hat = 2 / 0.01² = 20,000. Layers with a smaller n_hat
  weaken the gradient.
- PReLU behaves like ReLU where the rule takes a into account (Eq. 15). With Xavier and a fixed std,
  which do not, each layer keeps 1 + a² times as much of the variance as with ReLU.

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
    """Write README.md, propagation.csv, MODEL.png and MODEL.svg; returns the path of the first.

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
    models = study.settings.models
    rows = [astuple(claim) for claim in claims(results)]
    page = _PAGE.format(
        inits="; ".join(INIT_NAMES.values()),
        names=" ".join(models),
        settings=study.settings,
        torch=study.torch,
        claims=markdown_table(["statement", "paper", "closed form", "measured"], rows, "llll"),
        disagreement=max(disagreement(results, *pair) for pair in product(models, ACT_NAMES)),
        factors=_factor_table(results),
        growth=_growth_table(results),
        figures="".join(
            f"\n### {model}\n\n![Predicted and measured variances by layer of {model}]({model}.png)"
            f"\n\n[SVG]({model}.svg)\n"
            for model in models
        ),
    )
    return {"propagation.csv": _layer_table(results), "README.md": page}


def claims(results: Results) -> list[Claim]:
    """The paper's statements about these models and about VGG model B."""
    models = dict.fromkeys(network.model for network in results)
    return [
        *_initial_stds(),
        _weak_gradient(results),
        *(claim for model in models for claim in _response_claims(results, model)),
    ]


def _initial_stds() -> list[Claim]:
    """VGG model B's initial stds by Eq. 14, and as drawn."""
    trunk = convolutions(Network(VGG, "relu", "he").config(), seed=0)
    rows = []
    for filters, printed in _PRINTED_STDS.items():
        convs = [c for c in trunk if isinstance(c, nn.Conv2d) and c.out_channels == filters]
        weights = torch.cat([conv.weight.flatten() for conv in convs])
        rows.append(
            Claim(
                f"VGG model B, ReLU: std of the {filters} filters by Eq. 14",
                paper=printed,
                closed_form=f"{math.sqrt(2 / (9 * filters)):.4f}",
                measured=f"{weights.std():.4f}",
            )
        )
    return rows


def _weak_gradient(results: Results) -> Claim:
    """What a std of 0.01 leaves of VGG model B's gradient."""
    he, fixed = Network(VGG, "relu", "he"), Network(VGG, "relu", "gaussian")
    factor = math.prod(conv.std / 0.01 for conv in conv_table(he.config())[1:])
    measured = NOT_RUN
    if he in results:
        ratios = results[he].draws[BACKWARD, :, 1] / results[fixed].draws[BACKWARD, :, 1]
        measured = f"1/({span(np.sqrt(ratios), '.1f')})"
    return Claim(
        "VGG model B, ReLU: std of the gradient from conv10 to conv2, std 0.01 against He",
        paper="1/(1.7e4)",
        closed_form=f"1/{factor:.1f}",
        measured=measured,
    )


def _response_claims(results: Results, model: str) -> list[Claim]:
    """Xavier lacks the 2 of Eq. 10 in each layer; Eq. 14 costs the responses a single factor."""
    y = {init: results[Network(model, "relu", init)].draws[FORWARD] for init in INIT_NAMES}
    table = results[Network(model, "relu", "he")].table
    num_layers, c_2, d_L = len(table), table[1].layer.in_channels, table[-1].layer.out_channels
    backward = y["he"] / y["he_forward"]
    return [
        Claim(
            f"{model}, ReLU: std of the last response, Xavier against He forward",
            paper=f"1/sqrt(2)^{num_layers}",
            closed_form=f"{0.5 ** (num_layers / 2):.4e}",
            measured=span(np.sqrt(y["xavier"] / y["he_forward"])[:, -1], ".4e"),
        ),
        Claim(
            f"{model}, ReLU: Var[y_L] / Var[y_1], He backward against He forward",
            paper="c_2 / d_L",
            closed_form=f"{c_2}/{d_L} = {c_2 / d_L:.6f}",
            measured=span(backward[:, -1] / backward[:, 0], ".6f"),
        ),
    ]


def disagreement(results: Results, model: str, act: str) -> float:
    """The largest relative difference of measured / predicted between two inits, any seed."""
    of_inits = [results[Network(model, act, init)] for init in INIT_NAMES]
    ratios = np.stack([result.draws / result.predicted[:, None] for result in of_inits])
    return float(np.nanmax(ratios.max(axis=0) / ratios.min(axis=0) - 1))


def _factor_table(results: Results) -> str:
    """measured / predicted = borders * max-pools * rest, at y_L and at dx_2."""
    header = ["model", "rectifier", "of", "measured / predicted", "borders", "max-pools"]
    header += ["the rest (mean ± standard error)"]
    rows = []
    for network, result in results.items():
        if network.init != "he":
            continue
        last_layers = {f"Var[y_{len(result.table)}]": (FORWARD, -1), "Var[Δx_2]": (BACKWARD, 1)}
        for variance, at in last_layers.items():
            ratio = result.measured[at] / result.predicted[at]
            rows.append(
                [
                    network.model,
                    ACT_NAMES[network.act],
                    variance,
                    f"{ratio:.3g} ×/÷ {result.spread[at]:.2f}",
                    f"{result.borders[at]:.3g}",
                    f"{result.pools[at]:.3g}",
                    f"{result.rest_mean[at]:.2f} ± {result.rest_error[at]:.2f}",
                ]
            )
    return markdown_table(header, rows, "lll")


def _growth_table(results: Results) -> str:
    """How ReLU networks change variances from end to end."""
    header = ["model", "initialisation"]
    for of in ("Var[y_L] / Var[y_1]", "Var[Δx_2] / Var[Δx_{L+1}]"):
        header += [f"{of}: predicted", "measured"]
    rows = []
    for network, result in results.items():
        if network.act == "relu":
            curves = result.predicted, result.measured
            up = [f"{curve[FORWARD, -1] / curve[FORWARD, 0]:.3g}" for curve in curves]
            down = [f"{curve[BACKWARD, 1]:.3g}" for curve in curves]
            rows.append([network.model, INIT_NAMES[network.init], *up, *down])
    return markdown_table(header, rows, "ll")


def _layer_table(results: Results) -> str:
    """propagation.csv: a row for each layer of each network."""
    names = ("predicted", "measured", "spread", "borders", "pools", "rest_mean", "rest_error")
    header = ["model", "act", "init", "layer", "l", "n", "n_hat", "weight_std"]
    header += [f"{direction}_{name}" for direction in ("forward", "backward") for name in names]
    rows = []
    for network, result in results.items():
        columns = np.stack([getattr(result, name) for name in names], axis=1)  # [2, columns, L]
        for i, conv in enumerate(result.table):
            numbers = [conv.std, *columns[:, :, i].flat]
            cells = [None if math.isnan(number) else float(f"{number:.6g}") for number in numbers]
            layer = conv.layer
            rows.append([*network, layer.name, i + 1, layer.fan_in, layer.fan_out, *cells])
    return csv_table(header, rows)
