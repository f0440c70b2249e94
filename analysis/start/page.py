"""The page of the first steps: what was measured, what was predicted, and why."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

from analysis.start.curvature import bound
from analysis.start.plot import draw_remedies, draw_start
from analysis.start.record import Layer, Record, read_records
from analysis.start.remedies import DEFAULT, LETTER, REMEDIES
from analysis.table import markdown_table, span
from common.errors import UserError, refusing
from common.style import save_figure, styled

_HEAD = """\
# The first steps of training

Does the paper's recipe train? `python scripts/reproduce.py start --data FOLDER` trains networks for
their first steps as `train.py` does, to the letter of the paper and with the project's default, and
records what happens in each layer. This page is written from `records/`; no number is typed, and
none is an error on ImageNet.

## What happens, and why

The gradient of fc3 is the product of (p - y) and the features of fc2. These features are large, as
the inputs keep their range of about [-128, 128], and much of their energy is common to all images.
So the update from one image moves the logits of **all** images: by rate x k x (p - y) / B, where k
is the mean inner product of two images' features of fc2. A batch of 128 has few of the 1,000
classes, and step 1 raises the logits of these few for every image, by rate x k / 128 for each
occurrence. The second batch has other classes, and this alone predicts its loss ("predicted" below,
from k and the labels, as if all images were alike and p = 1/K). Raising a few logits also
concentrates the probabilities. That raises the curvature beyond 2 (1 + momentum) / rate, where
descent with momentum moves away from a minimum. Then training diverges, or features shrink until
the rate suits them, and units die on the way.

The noise of the labels settles in these common logits at a variance of rate x k /
(2 (1 - momentum) B) ("noise" below). Where it starts above 1, training diverges, or features shrink
until it is lower; a recipe with a smaller effective rate leaves the features larger. After some 100
steps the noise is much the same for all recipes that learn.

The default clips: a gradient whose Euclidean norm is above 1 is scaled down to that norm. At the
start this divides the rate by some fifty where features are large, and changes nothing where they
are small, as behind many layers from Xavier's initialisation. Features, initialisation and schedule
stay the paper's. `clip_norm=null` is the paper to the letter.

These images show whether training diverges at the start, and what happens to the features. They do
not show how good a network is after 80 epochs, and one of their classes is easier to learn than one
of ImageNet.
"""

Runs = Sequence[Record]  # of one network and recipe
Column = tuple[str, Callable[[Runs], str]]  # of a table: its title, and a row's cell


def write_start_page(folder: Path) -> Path:
    """README.md and its figures from the records in `folder`; returns the page's path.

    Raises UserError if there are no records, or if the files cannot be written.
    """
    records = read_records(folder / "records")
    if not records:
        raise UserError(f"there is no record in {folder / 'records'}")
    with styled():
        sections = [_section(group, folder) for group in _by(records, _setting)]
    with refusing(OSError, what=f"cannot write into {folder}"):
        text = "\n\n".join(part.strip() for part in [_HEAD, *sections])
        (folder / "README.md").write_text(text + "\n")
    return folder / "README.md"


def _setting(record: Record) -> tuple[object, ...]:
    case = record.case
    return case.data, case.crop, *case.scale, case.batch_size, case.precision, *case.overrides


def _by(records: Iterable[Record], key: Callable[[Record], object]) -> list[list[Record]]:
    """Records of one key together, in the order in which keys come."""
    groups: dict[object, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.values())


def _section(records: Runs, folder: Path) -> str:
    case = records[0].case
    low, high = case.scale
    scale = f"{low}" if low == high else f"{low} to {high}"
    order = list(REMEDIES)
    rows = _by(
        sorted(records, key=lambda r: (*r.case.network, order.index(r.case.remedy))),
        lambda r: (r.case.network, r.case.remedy),
    )
    parts = [
        f"## {case.data}: crops of {case.crop} pixels at scale {scale}, {case.precision}",
        f"{case.num_images:,} images of {case.num_classes:,} classes (ln K = "
        f"{math.log(case.num_classes):.3f}), shorter side {scale}, batches of {case.batch_size}.",
        _table(_LOSSES, rows),
        '"At the end": mean of the last ten steps of the runs that did not diverge.',
        _table(_FEATURES, [runs for row in rows if (runs := _probed(row))]),
        "Dead: channels of a convolution, or units of fc1 or fc2, that are positive nowhere in a "
        "batch. The end is the last step before a run was stopped.",
        *_curvatures(rows),
    ]
    for group in _by(records, lambda record: (record.case.model, record.case.init)):
        parts += _figures(group, folder)
    return "\n\n".join(parts)


def _names(runs: Runs) -> list[str]:
    case = runs[0].case
    return [f"{case.model}, {case.act}, {case.init}", REMEDIES[case.remedy].title]


def _table(columns: Sequence[Column], rows: Iterable[Runs]) -> str:
    header = ["network", "recipe", *(title for title, _ in columns)]
    body = [[*_names(runs), *(cell(runs) for _, cell in columns)] for runs in rows]
    return markdown_table(header, body, "ll").rstrip()


def _finished(runs: Runs) -> list[Record]:
    return [record for record in runs if not record.diverged]


def _num_above_guessing(runs: Runs) -> str:
    limit = math.log(runs[0].case.num_classes) + 1
    return f"{sum(not record.highest <= limit for record in runs)}"


def _predicted(runs: Runs) -> list[tuple[float, float]]:
    """Predicted and measured loss of step 2, where there is a prediction."""
    return [(r.second, r.losses[1]) for r in runs if r.second is not None]


_LOSSES: list[Column] = [
    ("seeds", lambda runs: f"{len(runs)}"),
    ("steps", lambda runs: span((len(r.losses) for r in runs), ".0f")),
    ("diverged", lambda runs: f"{len(runs) - len(_finished(runs))}"),
    ("loss above ln K + 1", _num_above_guessing),
    ("highest loss after step 1", lambda runs: f"{max(r.highest for r in runs):.3g}"),
    (
        "loss at the end",
        lambda runs: span((fmean(r.losses[-10:]) for r in _finished(runs)), ".2f"),
    ),
    ("step 2: predicted", lambda runs: span((loss for loss, _ in _predicted(runs)), ".1f")),
    ("measured", lambda runs: span((loss for _, loss in _predicted(runs)), ".1f")),
]


def _probed(runs: Runs) -> list[Record]:
    return [record for record in runs if len(record.probes) > 1]


def _at_both_ends(title: str, cell: Callable[[Runs, int], str]) -> list[Column]:
    """A quantity at step 1 and at the end; `cell` gets the index among a record's probes."""
    return [
        (f"{title}, step 1", lambda runs: cell(runs, 0)),
        ("at the end", lambda runs: cell(runs, -1)),
    ]


def _growth(runs: Runs) -> str:
    return span((r.layer(n, -1).rms / r.layer(n, 0).rms for r in runs for n in r.features), ".2f")


def _percent(values: Iterable[float]) -> str:
    return f"{span((100 * value for value in values), '.0f')} %"


def _largest_update(runs: Runs, index: int) -> str:
    """Norm of a step's update against that of the weights, with the layer where it is largest."""
    layers: list[Layer] = [layer for record in runs for layer in record.probes[index].layers]
    layer = max(layers, key=lambda layer: layer.update / layer.weight)
    return f"{100 * layer.update / layer.weight:.2g} % ({layer.name})"


_FEATURES: list[Column] = [
    ("rms at the end / at step 1, all layers", _growth),
    *_at_both_ends("dead in fc1", lambda runs, i: _percent(r.layer("fc1", i).dead for r in runs)),
    *_at_both_ends(
        "dead in the worst layer",
        lambda runs, i: _percent(max(r.layer(n, i).dead for n in r.features) for r in runs),
    ),
    ("common energy, fc2", lambda runs: _percent(r.layer("fc2", 0).common for r in runs)),
    *_at_both_ends("noise", lambda runs, i: span((r.noise(i) for r in runs), ".2g")),
    *_at_both_ends(
        "std of logits", lambda runs, i: span((r.layer("fc3", i).rms for r in runs), ".2g")
    ),
    *_at_both_ends("gradient norm", lambda runs, i: span((r.norms[i] for r in runs), ".3g")),
    *_at_both_ends("largest update / weights of a layer", _largest_update),
]


def _curvatures(rows: Iterable[Runs]) -> list[str]:
    """The table of curvatures under its caption; nothing if none was measured."""
    triples = [(runs, record, c) for runs in rows for record in runs for c in record.curvature]
    if not triples:
        return []
    header = ["network", "recipe", "step", "along the gradient", "largest eigenvalue", "bound"]
    body = [
        [
            *_names(runs),
            f"{c.step}",
            *(f"{n:,.3g}" for n in (c.along_gradient, c.largest)),
            f"{bound(record.rate(c.step), record.case.momentum):,.3g}",
        ]
        for runs, record, c in triples
    ]
    images = max(c.images for *_, c in triples)
    caption = (
        f"Curvature of the loss before a step, for {images} images of its batch, and the bound "
        "2 (1 + momentum) / rate of heavy-ball descent. Clipping counts as a lower rate."
    )
    return [caption, markdown_table(header, body, "ll").rstrip()]


def _figures(records: Runs, folder: Path) -> list[str]:
    """The first steps of one model and initialisation, and its recipes compared."""
    model, init, setting = (getattr(records[0].case, key) for key in ("model", "init", "setting"))
    images = []
    columns = [[r for r in records if r.case.remedy == name] for name in (LETTER, DEFAULT)]
    if all(columns):
        name = f"first-steps-{setting}-{model}-{init}"
        save_figure(draw_start(columns, f"{model}, {init}: the first steps"), folder, name)
        images.append(f"![Loss and features of {model} over the first steps]({name}.png)")
    for same in _by(records, lambda record: (record.case.act, record.case.seed)):
        if len(same) > 2:
            act, seed = same[0].case.act, same[0].case.seed
            name = f"ways-{setting}-{model}-{act}-{init}-seed{seed}"
            title = f"{model}, {act}, {init}, seed {seed}: recipes that may keep it from diverging"
            same.sort(key=lambda record: list(REMEDIES).index(record.case.remedy))
            save_figure(draw_remedies(same, title), folder, name)
            images.append(f"![{title}]({name}.png)")
    return images
