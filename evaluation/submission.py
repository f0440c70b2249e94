"""The test images of ILSVRC 2012, and the submission file for its evaluation server (Table 7)."""

from pathlib import Path

from common.errors import UserError
from data.draws import Ints
from data.sources.cache import OnProgress
from data.sources.imagenet import DEVKIT, open_devkit
from data.sources.index import ImageIndex, scan_folder
from evaluation.predictions import Predictions, best_classes, readable


def open_test_images(root: str, classes: list[str], on_progress: OnProgress) -> ImageIndex:
    """The images in root/test or in the official tar, by file name; their labels are -1.

    Raises UserError if there are none, or as submission_ids does.
    """
    submission_ids(root, classes)  # refuses now, not after hours of testing
    return scan_folder(root, "test", classes, on_progress)


def submission_ids(root: str, classes: list[str]) -> Ints:
    """The ILSVRC2012_ID of each class, int64 [K]: 1 .. K, as the devkit numbers them.

    Raises UserError if the data set has no devkit, or if the devkit has other classes or fewer than
    five.
    """
    devkit = open_devkit(Path(root).expanduser().absolute())
    if not devkit.is_numbered:
        raise UserError(
            f"a submission numbers the classes as {DEVKIT} does, and {root} has Kaggle's files "
            "alone: put the devkit there too, or give data.root=FOLDER with links to it and to "
            "ILSVRC/"
        )
    if devkit.classes != classes:
        raise UserError(f"the devkit in {root} has other classes than the checkpoint")
    if len(classes) < 5:
        raise UserError(f"a submission needs 5 classes, and there are {len(classes)}")
    return devkit.ids


def submission(predictions: Predictions, root: str) -> str:
    """A line per image, in order of file name: the ids of five classes, most probable first.

    Raises UserError as submission_ids does, or if an image could not be read.
    """
    ids = submission_ids(root, predictions.classes)
    unreadable = int((~readable(predictions.scores)).sum())
    if unreadable:
        raise UserError(
            f"{unreadable} test images could not be read: replace the files, because a submission "
            "has a line for each"
        )
    rows = ids[best_classes(predictions.scores, 5)]
    return "".join(" ".join(map(str, row)) + "\n" for row in rows.tolist())
