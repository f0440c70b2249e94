"""Class probabilities of images: combined over scales and networks, saved and loaded."""

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from common.files import write_atomically
from data.draws import Ints
from data.sources.index import ImageIndex

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """Probabilities of N images; NaN for unreadable ones."""

    scores: Floats  # [N, K]
    labels: Ints  # [N]
    classes: list[str]  # [K]
    images: str  # the hash of these images in this order


def readable(scores: Floats) -> npt.NDArray[np.bool_]:
    """Which images could be read: bool [N] for scores [N, K]."""
    return np.asarray(np.isfinite(scores).all(axis=1))


def best_classes(scores: Floats, count: int) -> Ints:
    """The `count` classes of highest score for each row of [N, K], best first: int64 [N, count].

    Ties go to the lower class index, as they do when errors are counted.
    """
    return np.argsort(-scores, axis=1, kind="stable")[:, :count].astype(np.int64)


def hash_of_images(index: ImageIndex, indices: Ints) -> str:
    """Hex SHA-256 of index[indices]. Predictions with different hashes are never combined."""
    digest = hashlib.sha256(index.fingerprint().encode())
    digest.update(np.ascontiguousarray(indices, "<i8").tobytes())
    return digest.hexdigest()


def weighted_mean(scores: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Weighted mean of the scores [N, K] of scales or networks, computed in float64."""
    total = np.zeros(scores[0].shape, np.float64)
    for each, weight in zip(scores, weights, strict=True):
        total += weight * each.astype(np.float64)
    return (total / sum(weights)).astype(np.float32)


class ImageList(Protocol):
    """The images that a network, or a file of its predictions, is for."""

    @property
    def classes(self) -> list[str]: ...

    @property
    def images(self) -> str: ...  # as in Predictions


def refuse_mixed(networks: Mapping[str, ImageList]) -> None:
    """Raise UserError if the networks, by name, are for different images or classes."""
    (first_name, first), *others = networks.items()
    for name, other in others:
        if other.images != first.images or other.classes != first.classes:
            raise UserError(f"{name} and {first_name} are for different image lists")


def ensemble(networks: dict[str, Predictions], weights: list[float] | None) -> Predictions:
    """The weighted mean of the networks' probabilities (Table 7); networks by name.

    Raises UserError if they are for different images or classes.
    """
    refuse_mixed(networks)
    predictions = list(networks.values())
    scores = [each.scores for each in predictions]
    return replace(predictions[0], scores=weighted_mean(scores, weights or [1.0] * len(scores)))


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write probabilities (float16), labels, classes and the hash of the images, atomically."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "probabilities": predictions.scores.astype(np.float16),
        "labels": predictions.labels.astype(np.int32),
        "classes": np.array(predictions.classes),
        "images": np.array(predictions.images),
    }
    write_atomically(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def load_predictions(path: Path) -> Predictions:
    """What save_predictions wrote; raises UserError if the file is missing or something else."""
    if not path.is_file():
        raise UserError(f"there are no predictions at {path}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Predictions(
                scores=arrays["probabilities"].astype(np.float32),
                labels=arrays["labels"].astype(np.int64),
                classes=arrays["classes"].tolist(),
                images=str(arrays["images"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or holds no predictions ({error})") from error
