"""Class probabilities of every image: combined over scales and networks, saved and read back."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.files import write_atomically
from data.draws import Ints
from data.sources.index import ImageIndex

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """Probabilities of N images. Rows of unreadable images are not numbers."""

    scores: Floats  # [N, K]
    labels: Ints  # [N]
    classes: list[str]  # [K]
    images: str  # which images these are, and their order


def image_list(index: ImageIndex, chosen: Ints) -> str:
    """Hex SHA-256 of the images `chosen` of an index: predictions of other lists never mix."""
    digest = hashlib.sha256(index.fingerprint().encode())
    digest.update(np.ascontiguousarray(chosen, "<i8").tobytes())
    return digest.hexdigest()


def weighted_mean(parts: list[Floats], weights: list[float]) -> Floats:
    """Mean of scores [N, K] of scales or networks, in double precision."""
    total = np.zeros(parts[0].shape, np.float64)
    for part, weight in zip(parts, weights, strict=True):
        total += weight * part.astype(np.float64)
    return (total / sum(weights)).astype(np.float32)


def ensemble(members: dict[str, Predictions], weights: list[float] | None) -> Predictions:
    """The weighted mean of networks' probabilities (Table 7); members by name.

    Raises UserError where they are of different images or classes, or weights do not fit.
    """
    (first_name, first), *others = members.items()
    for name, other in others:
        if other.images != first.images or other.classes != first.classes:
            raise UserError(f"{name} and {first_name} are predictions of different image lists")
    weights = weights or [1.0] * len(members)
    if len(weights) != len(members) or min(weights) < 0 or sum(weights) <= 0:
        raise UserError(f"weights={weights} must be {len(members)} numbers, none negative")
    scores = weighted_mean([member.scores for member in members.values()], weights)
    return Predictions(scores, first.labels, first.classes, first.images)


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write probabilities (float16), labels, classes and the image list's hash, atomically."""
    arrays: dict[str, Any] = {
        "probabilities": predictions.scores.astype(np.float16),
        "labels": predictions.labels.astype(np.int32),
        "classes": np.array(predictions.classes),
        "images": np.array(predictions.images),
    }
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def load_predictions(path: Path) -> Predictions:
    """What save_predictions wrote; raises UserError if it is missing or something else."""
    if not path.is_file():
        raise UserError(f"there are no predictions at {path}")
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Predictions(
                kept["probabilities"].astype(np.float32),
                kept["labels"].astype(np.int64),
                kept["classes"].tolist(),
                str(kept["images"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or holds no predictions ({error})") from error
