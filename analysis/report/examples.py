"""Figs. 4 and 5: validation images with five predictions, from saved predictions and the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from data.sources.index import scan_folder
from evaluation.pictures import Picture

_SHOWN = 12  # pictures in a figure
_ORDER = 20150206  # seeds the order in which images are looked at; no result depends on it


@dataclass(frozen=True)
class Saved:
    """What eval.py save_predictions= wrote."""

    probabilities: npt.NDArray[np.float32]  # [N, K]
    labels: npt.NDArray[np.int64]  # [N]
    classes: list[str]


def read_saved(path: Path) -> Saved:
    """The file's content; raises UserError if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            probabilities = kept["probabilities"].astype(np.float32)
            return Saved(probabilities, kept["labels"].astype(np.int64), kept["classes"].tolist())
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or holds no predictions ({error})") from error


def examples(saved: Saved, root: str, words: Sequence[str], *, right: bool) -> list[Picture]:
    """Images of different classes, taken at random, whose class is (not) the first guess.

    right: Fig. 4, the class is the first guess; else Fig. 5, it is not among the five. Raises
    UserError if `root` does not hold the images of the predictions.
    """
    index = scan_folder(root, "val", classes=saved.classes)
    if not np.array_equal(index.labels, saved.labels):
        raise UserError(f"the predictions are not of the validation images in {root}")
    guesses = np.argsort(-saved.probabilities, axis=1, kind="stable")[:, :5]
    hits = guesses == saved.labels[:, None]
    known = np.isfinite(saved.probabilities).all(1)
    wanted = known & (hits[:, 0] if right else ~hits.any(1))
    chosen: list[int] = []
    for i in np.random.default_rng(_ORDER).permutation(np.flatnonzero(wanted)).tolist():
        if len(chosen) < _SHOWN and saved.labels[i] not in saved.labels[chosen]:
            chosen.append(i)
    return [
        Picture(
            index.read(i),
            words[saved.labels[i]],
            [(words[k], float(saved.probabilities[i, k])) for k in guesses[i]],
        )
        for i in chosen
    ]
