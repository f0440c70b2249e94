"""The page of the first steps: what was measured, predicted, and made of it."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

from analysis.start.plot import draw_remedies, draw_start
from analysis.start.record import Record, read_records
from analysis.start.remedies import DEFAULT, LETTER, REMEDIES
from analysis.table import span
from common.errors import UserError, refusing
from common.style import save_figure, styled

_HEAD = """\
# The first steps of training

Does the paper's recipe train? `python scripts/reproduce.py start --data FOLDER` trains networks for
their first steps as `train.py` does, to the letter of the paper and with the project's default, and
looks into them. This page is written from `records/`; nothing is typed. No number of it is an error
on ImageNet.

## What happens, and why

fc3's gradient is the product of (p - y) and the features of fc2. These are large, as inputs keep
their range of about [-128, 128], and much of their energy is the same for all images. So an image's
update moves the logits of **all** images: by rate x k x (p - y) / B, where k is the mean product of
two images' features of fc2. A batch of 128 holds few of 1,000 classes, and step 1 lifts the logits
of these few for every image, by rate x k / 128 each time they occur. The second batch has other
classes, and this alone predicts its loss ("predicted" below, from k and the labels, as if all
images were alike and p = 1/K). The lift also concentrates the probabilities, which raises the
curvature beyond 2 (1 + momentum) / rate, where momentum descent moves away from a minimum. Then
training diverges, or features shrink until the rate suits them, and units die on the way.

The noise of labels settles in these common logits at a variance of rate x k / (2 (1 - momentum) B)
("noise" below). Where it begins above 1, training diverges or brings it down, by smaller features;
where a way of training makes the effective rate smaller, features stay larger. After some 100 steps
the product is much the same for all ways that learn.

The default divides the images by 32 before conv1. Biases begin at 0, and rectifiers and pools
satisfy f(c x) = c f(x), so that all features begin 32 times smaller and k 1,024 times. The rate and
the initialisation stay the paper's. `model.input_scale=1` is the paper to the letter.

These images tell whether the start diverges, and what features do. They do not tell how well a
network is after 80 epochs, and a class of them is easier to learn than one of ImageNet.
"""


def write_start_page(folder: Path) -> Path:
    """README.md and its figures from the records in `folder`; returns the page's path.

    Raises UserError if there are no records, or if the files cannot be written.
    """
    records = read_records(folder / "records")
    if not records:
        raise UserError(f"there is no record in {folder / 'records'}")
    parts = [_HEAD]
    with styled():
        parts += [_section(group, folder) for group in _by(records, _setting)]
    with refusing(OSError, what=f"cannot write into {folder}"):
        (folder / "README.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")
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


def _section(records: Sequence[Record], folder: Path) -> str:
    case = records[0].case
    low, high = case.scale
    scale = f"{low}" if low == high else f"{low} to {high}"
    parts = [
        f"## {case.data}: crops of {case.crop} pixels at scale {scale}",
        f"{case.num_images:,} images of {case.num_classes:,} classes (ln K = "
        f"{math.log(case.num_classes):.3f}), shorter side {scale}, batches of {case.batch_size}, "
        f"{case.precision}.",
        _losses(records),
        _features(records),
        _curvatures(records),
    ]
    for group in _by(records, lambda record: (record.case.model, record.case.init)):
        parts += _figures(group, folder)
    return "\n\n".join(part for part in parts if part)


def _figures(records: Sequence[Record], folder: Path) -> list[str]:
    """Of one model and initialisation: its first steps, and the ways compared."""
    model, init, setting = (getattr(records[0].case, key) for key in ("model", "init", "setting"))
    found = []
    chosen = [[r for r in records if r.case.remedy == name] for name in (LETTER, DEFAULT)]
    if all(chosen):
        name = f"first-steps-{setting}-{model}-{init}"
        save_figure(draw_start(chosen, f"{model}, {init}: the first steps"), folder, name)
        found.append(f"![Loss and features of {model} over the first steps]({name}.png)")
    for same in _by(records, lambda record: (record.case.act, record.case.seed)):
        if len(same) > 2:
            act, seed = same[0].case.act, same[0].case.seed
            name = f"ways-{setting}-{model}-{act}-{init}-seed{seed}"
            title = f"{model}, {act}, {init}, seed {seed}: ways to keep it from diverging"
            order = sorted(same, key=lambda record: list(REMEDIES).index(record.case.remedy))
            save_figure(draw_remedies(order, title), folder, name)
            found.append(f"![{title}]({name}.png)")
    return found


def _rows(records: Sequence[Record]) -> list[list[Record]]:
    """The seeds of each network and remedy, remedies of a network together."""
    order = list(REMEDIES)
    groups = _by(records, lambda r: (r.case.model, r.case.init, r.case.act, r.case.remedy))
    return sorted(
        groups,
        key=lambda g: (
            g[0].case.model,
            g[0].case.init,
            g[0].case.act,
            order.index(g[0].case.remedy),
        ),
    )


def _names(own: Sequence[Record]) -> list[str]:
    case = own[0].case
    return [f"{case.model}, {case.act}, {case.init}", REMEDIES[case.remedy].title]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rule = ["---", "---"] + ["--:"] * (len(head) - 2)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body])


def _losses(records: Sequence[Record]) -> str:
    head = ["network", "way", "seeds", "steps", "diverged", "loss above ln K + 1"]
    head += ["highest loss after step 1", "loss at the end", "step 2: predicted", "measured"]
    body = []
    for own in _rows(records):
        limit = math.log(own[0].case.num_classes) + 1
        ended = [r for r in own if not r.diverged]
        last = [fmean(r.losses[-10:]) for r in ended]
        pairs = [(r.second, r.losses[1]) for r in own if r.second is not None]
        body.append(
            [
                *_names(own),
                f"{len(own)}",
                span([len(r.losses) for r in own], ".0f"),
                f"{len(own) - len(ended)}",
                f"{sum(not r.highest <= limit for r in own)}",
                f"{max(r.highest for r in own):.3g}",
                span(last, ".2f") if last else "–",
                span([p for p, _ in pairs], ".1f") if pairs else "–",
                span([m for _, m in pairs], ".1f") if pairs else "–",
            ]
        )
    note = '"At the end": mean of the last ten steps of those that did not diverge.'
    return f"{_table(head, body)}\n\n{note}"


def _features(records: Sequence[Record]) -> str:
    head = ["network", "way", "rms at the end / at step 1, all layers", "dead at step 1, fc1"]
    head += ["at the end", "dead at step 1, worst layer", "at the end", "common energy, fc2"]
    head += ["noise, step 1", "at the end"]
    head += ["std of logits, step 1", "at the end", "gradient norm, step 1", "at the end"]
    head += ["largest update / weights of a layer, step 1", "at the end"]
    body = []
    for own in _rows(records):
        probed = [r for r in own if len(r.probes) > 1]
        if not probed:
            continue
        changes = [
            r.layer(name, -1).rms / r.layer(name, 0).rms for r in probed for name in r.features
        ]
        dead = [_percent([r.layer("fc1", place).dead for r in probed]) for place in (0, -1)] + [
            _percent([max(r.layer(n, place).dead for n in r.features) for r in probed])
            for place in (0, -1)
        ]
        body.append(
            [
                *_names(own),
                span(changes, ".2f"),
                *dead,
                _percent([r.layer("fc2", 0).common for r in probed]),
                *(span([r.noise(place) for r in probed], ".2g") for place in (0, -1)),
                *(span([r.layer("fc3", place).rms for r in probed], ".2g") for place in (0, -1)),
                *(span([r.norms[place] for r in probed], ".3g") for place in (0, -1)),
                *(_largest_update(probed, place) for place in (0, -1)),
            ]
        )
    note = (
        "Dead: positive nowhere in a batch, channels of convolutions and units of fc1, fc2. The "
        "end is the last step before a run was given up."
    )
    return f"{_table(head, body)}\n\n{note}"


def _largest_update(own: Sequence[Record], place: int) -> str:
    """Norm of a step's update against that of the weights, with the layer where it is largest."""
    layers = [layer for record in own for layer in record.probes[place].layers]
    layer = max(layers, key=lambda layer: layer.update / layer.weight)
    return f"{100 * layer.update / layer.weight:.2g} % ({layer.name})"


def _curvatures(records: Sequence[Record]) -> str:
    head = ["network", "way", "step", "along the gradient", "largest eigenvalue", "bound"]
    body = []
    for own in _rows(records):
        for record in own:
            for c in record.curvature:
                numbers = [f"{n:,.3g}" for n in (c.along_gradient, c.largest, c.bound)]
                body.append([*_names(own), f"{c.step}", *numbers])
    if not body:
        return ""
    images = max(c.images for record in records for c in record.curvature)
    note = (
        f"Curvature of the loss before a step, of {images} images of its batch, and the bound "
        "2 (1 + momentum) / rate of heavy-ball descent."
    )
    return f"{note}\n\n{_table(head, body)}"


def _percent(values: Sequence[float]) -> str:
    return f"{span([100 * value for value in values], '.0f')} %"
