"""Figs. 4 and 5: validation images and their five most probable classes."""

from collections.abc import Sequence

import numpy as np

from common.errors import UserError
from data.draws import subset
from data.sources.index import scan_folder
from evaluation.picture_figure import Picture
from evaluation.predictions import Predictions, best_classes, readable

_NUM_PICTURES = 12  # in a figure
_SEED = 20150206  # of the order in which images are tried; no number depends on it


def examples(
    predictions: Predictions,
    root: str,
    words: Sequence[str],
    *,
    right: bool,
    count: int | None = None,
) -> list[Picture]:
    """Randomly drawn images of different classes that the network gets right or wrong.

    right: Fig. 4, the true class comes first; else Fig. 5, it is not among the five. words: of each
    class. count: number of validation images tested, None: all. Raises UserError if `root` does not
    hold these images.
    """
    labels, probabilities = predictions.labels, predictions.scores
    index = scan_folder(root, "val", classes=predictions.classes)
    index = index.only(subset(len(index), count))
    if not np.array_equal(index.labels, labels):
        raise UserError(f"the predictions are not of the validation images in {root}")
    top5 = best_classes(probabilities, 5)
    hits = top5 == labels[:, None]
    wanted = readable(probabilities) & (hits[:, 0] if right else ~hits.any(1))
    order = np.random.default_rng(_SEED).permutation(np.flatnonzero(wanted))
    _, first_of_class = np.unique(labels[order], return_index=True)
    chosen = order[np.sort(first_of_class)][:_NUM_PICTURES].tolist()
    return [
        Picture(
            index.read(i),
            words[labels[i]],
            [(words[k], float(probabilities[i, k])) for k in top5[i]],
        )
        for i in chosen
    ]
