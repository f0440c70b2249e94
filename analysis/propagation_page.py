"""The page that explains a study of signal propagation: statements, what is seen, and why."""

from collections.abc import Iterable, Iterator, Sequence

from analysis.propagation_claims import Claim, inits_agree
from analysis.propagation_study import (
    ACT_NAMES,
    ACTS,
    Result,
    Results,
    Study,
    standard_error,
    typical,
    with_spread,
)

_FAR = {"forward": -1, "backward": 1}

_INTRODUCTION = """\
# Signal propagation (Sec. 2.2)

How the variance of the responses y_l changes from layer to layer on the way up (Eq. 9), and that
of the gradients Δx_l on the way down (Eq. 13), for four ways to initialise the convolutions. It
needs no data: the images are Gaussian noise of variance 1, and so is the gradient that starts
behind the last convolution's rectifier. The fc layers are left out, as in the paper. Variances are
mean squares over images, channels and positions. "a ×/÷ s" is the geometric mean over seeds, and
the factor of one standard deviation.

Made by `{command}`
(torch {torch}). All numbers: [propagation.csv](propagation.csv); as tables:
[propagation.md](propagation.md)."""

_STATEMENTS = """\
## What the paper states

{table}

- **The ratio of two initialisations is that of the closed form**, seed by seed, whatever the pools
  and borders: with one seed all draw the same weights but for a factor in each layer. Biases are 0,
  and rectifiers and pools satisfy f(c y) = c f(y) for c > 0, so that every response is the same but
  for a factor, and the same units are active. What differs is float32 rounding, which may switch a
  unit that is almost 0, or the choice between two almost equal responses of a pool. So measured /
  predicted differs by at most {agree:.0e} between any two initialisations of any network here.
- **Absolute variances** are not those of Eq. 9 and 13, see below: each max-pool and the borders
  weaken the gradient with every initialisation alike. "With pools and borders" is the closed form
  times these two factors of the next table."""

_DIFFERENCES = """\
## What Eq. 9 and 13 leave out

Measured / predicted at the far end of each way, and the factors it is made of. They hold for all
four initialisations.

{table}

- **Borders** (closed form). A window that reaches into the zero padding has fewer than n inputs,
  and a position near the border feeds fewer than n_hat outputs. This adds up on small maps.
- **Max-pools** (measured). On the way up, the largest response of a window has more than the
  average square: up to 3.1 times with 2x2 and 5.1 times with 3x3 independent responses and ReLU,
  less where neighbours are alike. On the way down, only one position of each window gets a
  gradient, which divides the mean square by 4 or 9; but that one is the largest, which the
  rectifier nearly always lets through, where Eq. 13 expects one half. Together this is 1/4 to 1/2
  for 2x2. A pool right behind conv1 does not lie on the way down to Δx_2.
- **What is left** should be 1: Eq. 9 and 13 are about the mean over draws of the weights. Here
  {within} of {all} lie within two standard errors of 1.
- **One draw** is not the mean: every layer multiplies by a random factor, and deep or narrow
  networks spread most. Such products are skewed. Their geometric mean, which tables and figures
  show, lies below their mean, by about exp(-s²/2) where s is the standard deviation of the
  logarithm."""

_SEEN = """\
## What is seen

- With He's rules neither variance falls or grows with the number of layers. Using one rule for both
  ways costs a factor of the ends only: c_2 / d_L for the responses with Eq. 14, d_L / c_2 for the
  gradients with Eq. 10. The pools change more than that: the gradient loses a factor of 3 at each.
- Xavier halves the responses' variance in every layer with ReLU, and the gradients' where a layer
  has as many filters as channels. Over the 26 layers after conv1 of small30 this is 1.5e-8, over
  the 10 of small14 it is 1e-3: the paper's 14 layers train with Xavier, its 30 layers do not.
- A std of 0.01 would be He's for 3x3 filters if there were 2,222 of them. Each 2x2 layer of small30
  divides the variance by about 20 or more; its first gradients are far below what fp16 can hold.
- PReLU (a = 0.25) is like ReLU where the rule takes a into account (Eq. 15). With Xavier and std
  0.01, which do not, it loses a little less in each layer."""


def page(results: Results, study: Study, claims: Sequence[Claim]) -> str:
    """README.md of the folder of results."""
    models = list(dict.fromkeys(study.settings.models))
    agree = max(inits_agree(results, model, act) for model in models for act in ACTS)
    header = ["statement", "paper", "closed form", "measured"]
    stated = [[c.statement, c.paper, c.closed_form, c.measured] for c in claims]
    within, total = _within(results, models)
    parts = [
        _INTRODUCTION.format(command=study.settings.command(), torch=study.torch),
        _STATEMENTS.format(table=markdown(header, stated), agree=agree),
        _DIFFERENCES.format(table=_factors(results, models), within=within, all=total),
        _SEEN,
        "## Figures",
    ]
    for model in models:
        caption = f"Predicted and measured variances by layer of {model}"
        parts.append(f"### {model}\n\n![{caption}]({model}.png)\n\n[SVG]({model}.svg)")
    return "\n\n".join(parts) + "\n"


def markdown(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ends(results: Results, models: Sequence[str]) -> Iterator[tuple[Result, str, int]]:
    """The far ends of each way: y_L and dx_2, as a direction and a layer's place."""
    for model in models:
        for act in ACTS:
            yield from ((results[model, act, "he"], d, i) for d, i in _FAR.items())


def _factors(results: Results, models: Sequence[str]) -> str:
    """measured / predicted = borders * max-pools * rest, at y_L and at dx_2."""
    header = ["model", "rectifier", "of", "measured / predicted", "borders", "max-pools"]
    body = []
    for result, d, i in _ends(results, models):
        rest = result.rest[d]
        name = "Var[Δx_2]" if d == "backward" else f"Var[y_{len(result.table)}]"
        numbers = [result.borders[d][i], typical(result.pools[d])[i]]
        left = f"{rest.mean(axis=0)[i]:.2f} ± {standard_error(rest)[i]:.2f}"
        cells = [with_spread(result.ratio(d), i), *(f"{number:.3g}" for number in numbers), left]
        body.append([result.model, ACT_NAMES[result.act], name, *cells])
    return markdown([*header, "what is left (mean over seeds)"], body)


def _within(results: Results, models: Sequence[str]) -> tuple[int, int]:
    """How many of the means over seeds lie within two standard errors of 1, of how many."""
    hits = [
        abs(result.rest[d].mean(axis=0)[i] - 1) <= 2 * standard_error(result.rest[d])[i]
        for result, d, i in _ends(results, models)
    ]
    return sum(map(bool, hits)), len(hits)
