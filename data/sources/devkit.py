"""The development kit of ILSVRC 2012: classes, their English names, and the validation labels.

It numbers the classes 1, 2, ... (ILSVRC2012_ID) in an order of its own; our labels are the ranks of
the WordNet ids. It also describes inner nodes of WordNet, which come after the classes.
"""

import io
import re
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from data.sources.tars import readable

META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_NUMBER = re.compile(rb"(?<!\d)(\d{1,9})(\.[^.]*)?$")  # of ILSVRC2012_val_00000293.JPEG


@dataclass(frozen=True)
class Devkit:
    """K classes and V validation images."""

    name: str  # of the file
    wnids: list[str]  # [K] WordNet ids in the devkit's order: ILSVRC2012_ID k is wnids[k - 1]
    words: dict[str, str]  # WordNet id -> its words, "kit fox, Vulpes macrotis"
    val_ids: npt.NDArray[np.int64]  # [V] ILSVRC2012_ID of each validation image, in file order
    num_train: dict[str, int] = field(default_factory=dict)  # WordNet id -> its training images
    is_numbered: bool = True  # whether ILSVRC2012_IDs are the devkit's; Kaggle's files have none

    @property
    def classes(self) -> list[str]:
        """The WordNet ids in the order of our labels."""
        return sorted(self.wnids)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """[K] the ILSVRC2012_ID of each of our labels."""
        return np.argsort(np.array(self.wnids)).astype(np.int64) + 1

    @property
    def val_labels(self) -> npt.NDArray[np.int64]:
        """[V] our label of each validation image, in file order."""
        label_of_id = np.argsort(self.ids)
        return label_of_id[self.val_ids - 1]

    def labels_of(self, names: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
        """[N] our labels of validation images, by the numbers in their names; -1: unknown number.

        Their order is not enough: it does not tell which image is missing.
        """
        rows = np.array([number_of(name) for name in names.tolist()], np.int64) - 1
        known = (rows >= 0) & (rows < len(self.val_ids))
        labels = np.full(len(names), -1, np.int64)
        labels[known] = self.val_labels[rows[known]]
        return labels


def number_of(name: bytes) -> int:
    """The number that ends the name of an image, with or without its extension; 0: it has none."""
    match = _NUMBER.search(name)
    return int(match[1]) if match else 0


def read_devkit(path: Path) -> Devkit:
    """The devkit at `path`: ILSVRC2012_devkit_t12.tar.gz, or its unpacked folder.

    Raises UserError if a file cannot be read, is damaged or incomplete, or contradicts itself.
    """
    files = _read_files(path)
    try:
        synsets = _read_synsets(files[META])
        val_ids = np.array(files[TRUTH].split(), np.int64)
    except Exception as error:  # scipy raises many kinds on a damaged file
        raise _refused(path, f"cannot be understood ({error})") from error
    leaves = [synset for synset in synsets if not synset["num_children"]]
    leaves.sort(key=lambda synset: int(synset["ILSVRC2012_ID"]))
    if [int(leaf["ILSVRC2012_ID"]) for leaf in leaves] != list(range(1, len(leaves) + 1)):
        raise _refused(path, "does not number its classes 1, 2, 3, ...")
    wnids = [str(leaf["WNID"]) for leaf in leaves]
    if len(set(wnids)) != len(wnids):
        raise _refused(path, "gives one WordNet id to two classes")
    if not len(val_ids) or val_ids.min() < 1 or val_ids.max() > len(wnids):
        raise _refused(path, f"has validation labels that are not in 1..{len(wnids)}")
    return Devkit(
        path.name,
        wnids,
        words={str(leaf["WNID"]): str(leaf["words"]) for leaf in leaves},
        val_ids=val_ids,
        num_train={str(leaf["WNID"]): int(leaf.get("num_train_images", 0)) for leaf in leaves},
    )


def _refused(path: Path, why: str) -> UserError:
    return UserError(f"{path} {why}: download it again")


def _read_files(path: Path) -> dict[str, bytes]:
    """The two files of the devkit that matter here."""
    files: dict[str, bytes] = {}
    if not path.name.endswith(".gz"):  # unpacked
        for name in (META, TRUTH):
            with readable(path / name):
                files[name] = (path / name).read_bytes()
        return files
    try:
        with readable(path), open(path, "rb") as file, tarfile.open(fileobj=file) as tar:
            for member in tar:
                name = "/".join(member.name.split("/")[-2:])
                if name in (META, TRUTH) and (content := tar.extractfile(member)):
                    files[name] = content.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        first_line = str(error).partition("\n")[0].rstrip(":")  # tarfile lists what it has tried
        raise _refused(path, f"is not a whole .tar.gz ({first_line})") from error
    for name in (META, TRUTH):
        if name not in files:
            raise _refused(path, f"holds no {name}")
    return files


def _read_synsets(meta: bytes) -> list[dict[str, Any]]:
    from scipy.io import loadmat  # takes a second; not needed once the scan is in the cache

    return loadmat(io.BytesIO(meta), simplify_cells=True)["synsets"]
