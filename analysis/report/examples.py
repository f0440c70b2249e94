"""Figs. 4 and 5: validation images with five predictions, from saved predictions and the images."""

from collections.abc import Sequence

import numpy as np

from common.errors import UserError
from data.draws import subset
from data.sources.index import scan_folder
from evaluation.picture_figure import Picture
from evaluation.predictions import Predictions

_NUM_PICTURES = 12  # in a figure
_SEED = 20150206  # of the order in which images are considered; no result depends on it


def examples(
    predictions: Predictions,
    root: str,
    words: Sequence[str],
    *,
    right: bool,
    count: int | None = None,
) -> list[Picture]:
    """Randomly drawn images of different classes, which the network got right or wrong.

    right: Fig. 4, the true class is predicted first; else Fig. 5, it is not among the five. count:
    validation images that were tested, None: all. Raises UserError if `root` does not hold them.
    """
    labels, probabilities = predictions.labels, predictions.scores
    index = scan_folder(root, "val", classes=predictions.classes)
    index = index.only(subset(len(index), count))
    if not np.array_equal(index.labels, labels):
        raise UserError(f"the predictions are not of the validation images in {root}")
    top5 = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    hits = top5 == labels[:, None]
    readable = np.isfinite(probabilities).all(1)
    wanted = readable & (hits[:, 0] if right else ~hits.any(1))
    chosen: list[int] = []
    for i in np.random.default_rng(_SEED).permutation(np.flatnonzero(wanted)).tolist():
        if len(chosen) < _NUM_PICTURES and labels[i] not in labels[chosen]:
            chosen.append(i)
    return [
        Picture(
            index.read(i),
            words[labels[i]],
            [(words[k], float(probabilities[i, k])) for k in top5[i]],
        )
        for i in chosen
    ]
