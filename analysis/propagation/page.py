"""The page that explains a study of signal propagation: statements, what is seen, and why."""

from collections.abc import Sequence

import numpy as np

from analysis.propagation.claims import Claim, inits_agree
from analysis.propagation.study import ACTS, INIT_NAMES, Results, Study, typical
from analysis.propagation.summary import (
    factor_table,
    growth_table,
    markdown,
    pool_table,
    within_errors,
)

_INTRODUCTION = """\
# Signal propagation (Sec. 2.2)

How the variance of the responses y_l changes from layer to layer on the way up (Eq. 9), and that
of the gradients Δx_l on the way down (Eq. 13), for {count} ways to initialise the convolutions:
{inits}.
It needs no data: the images are Gaussian noise of variance 1, and so is the gradient that starts
behind the last convolution's rectifier. The fc layers are left out, as in the paper. Variances are
mean squares over images, channels and positions. "a ×/÷ s" is the geometric mean over seeds, and
the factor of one standard deviation.

Measured by `{command}`
(torch {torch}). From these measurements, [signals.json](signals.json),
`python scripts/reproduce.py analysis --rewrite` writes this page, the figures and the numbers of
every layer: [propagation.csv](propagation.csv), and as tables [propagation.md](propagation.md)."""

_STATEMENTS = """\
## What the paper states

{table}

- **The ratio of two initialisations is that of the closed form**, seed by seed, whatever the pools
  and borders do: with the same seed, all draw the same weights up to a factor for each layer.
  Biases are 0, and rectifiers and pools satisfy f(c y) = c f(y) for c > 0, so every response is the
  same up to a factor, and the same units are active. Only float32 rounding differs: it may switch
  a unit that is almost 0, or change which of two almost equal responses wins in a pool. The largest
  difference in measured / predicted between two initialisations of any network here is {agree:.1e}
  of its value.
- **Absolute variances** are not those of Eq. 9 and 13: max-pools and borders change them, by the
  same factors for every initialisation (see below). "With pools and borders" is the closed form
  times these two factors."""

_DIFFERENCES = """\
## What Eq. 9 and 13 leave out

Measured / predicted at the far end of each way with He backward, and the factors it consists of.
They are the same for every initialisation.

{table}

- **Borders** (closed form). A window that reaches into the zero padding has fewer than n inputs,
  and a position near the border feeds fewer than n_hat outputs. The smaller the maps, the more
  this matters.
- **Max-pools** (measured). On the way up, the largest response of a window has more than the
  average square. On the way down, only one position of each window gets a gradient; but that
  position has the largest response, which the rectifier passes more often than the one half of
  the time that Eq. 13 assumes.
- **What is left** should be 1: Eq. 9 and 13 are about the mean over draws of the weights.
  {within}
- **One draw** is not the mean: every layer multiplies by a random factor, which varies more the
  narrower the layer, so the spread grows with depth. Such products are skewed. Their geometric
  mean, which tables and figures show, lies below their mean, by about exp(-s²/2) where s is the
  standard deviation of the logarithm."""

_POOLS = """\
A single max-pool multiplies the variances by these factors: in closed form if the responses of a
window are independent Gaussians, or all equal; and as measured at each pool with He backward
(geometric means over seeds, smallest to largest). A pool behind conv1 has no factor of the
gradient (–), as there is no Δx_1.

{table}"""

_SEEN = """\
## What is seen

ReLU networks. "A layer": the factor of each layer after conv1 by Eq. 9 and 13, smallest to largest;
"all layers": their product; "measured": the geometric mean over seeds, with pools and borders.

{table}

- He forward keeps the responses' variance, He backward the gradients', however many layers there
  are. Using one rule for both ways costs a factor of the ends only: c_2 / d_L for the responses
  with Eq. 14, d_L / c_2 for the gradients with Eq. 10.
- Xavier halves the responses' variance in every layer after conv1, and the gradients' where a layer
  has as many filters as channels. In the paper, the 14-layer model trains with Xavier, and the
  30-layer model does not.
- A std of {std} is that of He backward for n_hat = 2 / {std}² = {connections:,.0f}, as with
  {filters}. A layer with a smaller n_hat weakens the gradient. Of
  the networks here it is weakest in {weakest}: the std of Δx_2 is {dx:.1e} of that behind the last
  convolution. The smallest positive number in fp16 is {fp16:.1e}.
- PReLU (a = {slope}) is like ReLU where the rule takes a into account (Eq. 15). With Xavier and a
  fixed std, which do not, each layer keeps 1 + a² = {kept:g} times as much of the variance."""


def page(results: Results, study: Study, claims: Sequence[Claim]) -> str:
    """README.md of the folder of results."""
    models = list(dict.fromkeys(study.settings.models))
    pools = pool_table(results, models)
    parts = [_introduction(study), _statements(results, models, claims)]
    parts.append(_differences(results, models, study.settings.seeds))
    parts += [_POOLS.format(table=pools)] if pools else []
    parts += [_seen(results, models), "## Figures"]
    for model in models:
        caption = f"Predicted and measured variances by layer of {model}"
        parts.append(f"### {model}\n\n![{caption}]({model}.png)\n\n[SVG]({model}.svg)")
    return "\n\n".join(parts) + "\n"


def _introduction(study: Study) -> str:
    return _INTRODUCTION.format(
        count=len(INIT_NAMES),
        inits="; ".join(INIT_NAMES.values()),
        command=study.settings.command(),
        torch=study.torch,
    )


def _statements(results: Results, models: Sequence[str], claims: Sequence[Claim]) -> str:
    header = ["statement", "paper", "closed form", "measured"]
    body = [[c.statement, c.paper, c.closed_form, c.measured] for c in claims]
    agree = max(inits_agree(results, model, act) for model in models for act in ACTS)
    return _STATEMENTS.format(table=markdown(header, body), agree=agree)


def _differences(results: Results, models: Sequence[str], seeds: int) -> str:
    hits, count = within_errors(results, models)
    within = f"Here {hits} of {count} lie within two standard errors of 1."
    if seeds == 1:
        within = "A single seed has no standard error."
    return _DIFFERENCES.format(table=factor_table(results, models), within=within)


def _seen(results: Results, models: Sequence[str]) -> str:
    fixed = {model: results[model, "relu", "gaussian"] for model in models}
    std = fixed[models[0]].stds[0]
    connections = 2 / std**2
    kernels = sorted({conv.kernel for result in fixed.values() for conv in result.table[1:]})
    gradients = {model: typical(result.measured.backward)[1] for model, result in fixed.items()}
    weakest = min(gradients, key=lambda model: gradients[model])
    slope = results[models[0], "prelu", "he"].slope
    return _SEEN.format(
        table=growth_table(results, models),
        std=std,
        connections=connections,
        filters=" or ".join(f"{connections / k**2:,.0f} filters of {k}x{k}" for k in kernels),
        weakest=weakest,
        dx=np.sqrt(gradients[weakest]),
        fp16=float(np.finfo(np.float16).smallest_subnormal),
        slope=slope,
        kept=1 + slope**2,
    )
