"""The user's own pictures (images=) and their five most probable classes."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError, refusing
from data.sources.folders import is_image, left_out, list_files
from data.sources.index import ImageIndex
from evaluation.predictions import Predictions, best_classes, readable


def open_pictures(names: str | list[str], classes: list[str]) -> ImageIndex:
    """The given image files, and those in the given folders, in this order; their labels are -1.

    Raises UserError if a name is neither, or cannot be read.
    """
    files, unused = list[str](), list[str]()
    for name in names if isinstance(names, list) else [names]:
        path = Path(name).expanduser().absolute()
        with refusing(OSError, what=f"cannot read images={name}"):
            candidates = [path] if path.exists() else []
            if path.is_dir():
                candidates = sorted(path.iterdir())
                unused.append(left_out(path, list_files(path).unused))
        images = [str(file) for file in candidates if is_image(os.fsencode(file.name))]
        if not images:
            raise UserError(f"images={name} is not an image file or a folder of images")
        files += images
    paths = np.array([os.fsencode(file) for file in files], np.bytes_)
    remark = "; ".join(filter(None, unused))
    return ImageIndex(classes, np.full(len(files), -1, np.int64), "/", paths, left_out=remark)


@dataclass(frozen=True)
class ClassifiedPicture:
    """One of the user's pictures and its five most probable classes."""

    image: str  # path
    truth: str | None  # the class whose folder it is in, if any
    classes: list[str]  # most probable first
    words: list[str]  # their English names
    probabilities: list[float]
    truth_words: str | None

    def as_text(self) -> str:
        """The image, its true class if known, and a line for each class."""
        lines = [self.image + (f"  (true: {self.truth_words})" if self.truth else "")]
        for words, probability in zip(self.words, self.probabilities, strict=True):
            lines.append(f"  {100 * probability:6.2f} %  {words}")
        return "\n".join(lines)


def classify_pictures(
    predictions: Predictions, index: ImageIndex, words: list[str]
) -> list[ClassifiedPicture]:
    """The readable pictures; words: the English name of each class."""
    words_of = dict(zip(predictions.classes, words, strict=True))
    best = best_classes(predictions.scores, 5)
    pictures = []
    for i in np.flatnonzero(readable(predictions.scores)).tolist():
        folder = Path(index.path(i)).parent.name
        classes = [predictions.classes[label] for label in best[i]]
        pictures.append(
            ClassifiedPicture(
                image=index.path(i),
                truth=folder if folder in words_of else None,
                classes=classes,
                words=[words_of[name] for name in classes],
                probabilities=predictions.scores[i, best[i]].tolist(),
                truth_words=words_of.get(folder),
            )
        )
    return pictures
