"""The five most probable classes of a person's own pictures."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.sources.index import ImageIndex
from evaluation.predictions import Predictions
from evaluation.submission import best_classes


@dataclass(frozen=True)
class Guesses:
    """What a network says of one image."""

    image: str  # its file
    truth: str | None  # the class whose folder it is in, if it is in one
    classes: list[str]  # best first
    words: list[str]  # what people call them
    probabilities: list[float]
    truth_words: str | None


def guess(predictions: Predictions, index: ImageIndex, words: list[str]) -> list[Guesses]:
    """The five best classes of every readable image; `words` are the names of all classes."""
    names = dict(zip(predictions.classes, words, strict=True))
    found = []
    for i, row in enumerate(best_classes(predictions.scores, 5).tolist()):
        if not np.isfinite(predictions.scores[i]).all():
            continue
        path = index.path(i)
        folder = Path(path).parent.name
        truth = folder if folder in names else None
        classes = [predictions.classes[label] for label in row]
        found.append(
            Guesses(
                path,
                truth,
                classes,
                [names[name] for name in classes],
                [float(predictions.scores[i, label]) for label in row],
                names[truth] if truth else None,
            )
        )
    return found


def guess_table(found: list[Guesses]) -> str:
    """For a person: each image, its true class if known, and five lines of classes."""
    lines = []
    for one in found:
        lines.append(one.image + (f"  (true: {one.truth_words})" if one.truth else ""))
        for words, probability in zip(one.words, one.probabilities, strict=True):
            lines.append(f"  {100 * probability:6.2f} %  {words}")
    return "\n".join(lines)


def as_json(found: list[Guesses]) -> list[dict[str, object]]:
    """For the result file."""
    return [asdict(one) for one in found]
