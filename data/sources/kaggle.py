"""ImageNet 2012 as Kaggle gives it (ImageNet Object Localization Challenge), read in place.

ILSVRC/Data/CLS-LOC/ holds train/ with class folders, and val/ and test/ with images. Two files at
the top have the labels of val/ and the classes' English names.
"""

import csv
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.sources.devkit import Devkit, number_of
from data.sources.tars import readable

SPLITS = "ILSVRC/Data/CLS-LOC"  # where train/, val/ and test/ are
SOLUTION, WORDS = "LOC_val_solution.csv", "LOC_synset_mapping.txt"


def read_kaggle(root: Path) -> Devkit:
    """The devkit that LOC_val_solution.csv and LOC_synset_mapping.txt make up, without its numbers.

    Raises UserError if a file cannot be read or understood, or if they contradict each other.
    """
    words = _read_words(root / WORDS)
    wnids = sorted(words)
    id_of = {wnid: k + 1 for k, wnid in enumerate(wnids)}
    path = root / SOLUTION
    try:
        with readable(path), open(path, newline="", encoding="utf-8") as file:
            rows = [(row["ImageId"], row["PredictionString"]) for row in csv.DictReader(file)]
        # Rows are in no order. A prediction string is the class, then boxes: n01440764 90 3 410 332
        truth = {number_of(name.encode()): id_of[text.split()[0]] for name, text in rows}
    except (csv.Error, ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be understood ({error!r}): a line is an image and a class of {WORDS}, "
            "such as ILSVRC2012_val_00000001,n01751748 111 108 365 254; download it again"
        ) from error
    if not rows or sorted(truth) != list(range(1, len(rows) + 1)):
        raise UserError(f"{path} does not label images 1, 2, 3, ... once each: download it again")
    val_ids = np.array([truth[number] for number in sorted(truth)], np.int64)
    return Devkit(SOLUTION, wnids, words=words, val_ids=val_ids, is_numbered=False)


def _read_words(path: Path) -> dict[str, str]:
    """WordNet id -> words; a line is `n01440764 tench, Tinca tinca`."""
    try:
        with readable(path):
            lines = path.read_text(encoding="utf-8").splitlines()
        return dict(line.split(maxsplit=1) for line in lines if line)
    except ValueError as error:
        raise UserError(
            f"{path} cannot be understood ({error}): a line is a class and its words, such as "
            "n01440764 tench, Tinca tinca; download it again"
        ) from error
