"""The file that the ILSVRC evaluation server takes for the classification task."""

from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import write_atomically
from data.draws import Ints
from data.sources.imagenet import open_devkit
from evaluation.predictions import Predictions


def best_classes(scores: np.ndarray, count: int) -> Ints:
    """The `count` classes of highest score of each row [N, K], best first: int64 [N, count].

    Classes of equal score come in the order of their index, as errors are counted.
    """
    return np.argsort(-scores, axis=1, kind="stable")[:, :count].astype(np.int64)


def submission_ids(root: str, classes: list[str]) -> Ints:
    """[K] the ILSVRC2012_ID of each class. Raises UserError where no submission can be made:

    there is no devkit in the data set, it knows other classes, or there are fewer than five.
    """
    devkit = open_devkit(Path(root).expanduser().absolute())
    if devkit.classes != classes:
        raise UserError(f"the devkit in {root} has other classes than the checkpoint")
    if len(classes) < 5:
        raise UserError(f"a submission needs 5 classes, there are {len(classes)}")
    return devkit.ids


def submission(predictions: Predictions, root: str) -> str:
    """Five labels a line, best first, images in order of file name.

    Labels are the devkit's ILSVRC2012_IDs, 1 .. K in another order than ours. Raises UserError
    where there is no such number, or an image has no prediction.
    """
    ids = submission_ids(root, predictions.classes)
    unread = int((~np.isfinite(predictions.scores).all(axis=1)).sum())
    if unread:
        raise UserError(
            f"{unread} test images could not be read: a submission has a line for each, replace "
            "the files"
        )
    rows = ids[best_classes(predictions.scores, 5)]
    return "".join(" ".join(map(str, row)) + "\n" for row in rows.tolist())


def write_submission(path: Path, text: str) -> None:
    """Write the file atomically; raises UserError where it cannot be written."""
    write_atomically(path, lambda file: file.write(text.encode()))
