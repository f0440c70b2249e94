"""The images of a split: which exist, their labels, and where their bytes lie."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from data.sources.tars import TarReader


@dataclass(frozen=True)
class ImageIndex:
    """N images and their labels. Picklable; readable from any thread or process."""

    classes: list[str]  # sorted names; a label is a position in this list
    labels: npt.NDArray[np.int64] = field(repr=False)  # [N] ascending; -1: unknown (test images)
    folder: str  # root/split, or the tar, absolute
    names: npt.NDArray[np.bytes_] = field(repr=False)  # [N] file names inside their class's folder
    tar: TarReader | None = field(default=None, repr=False)  # [N] None: the images are files
    flat: bool = False  # the files lie in `folder` itself, whatever their class
    left_out: str = field(default="", repr=False)  # a sentence on files that are not used, if any

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, i: int) -> str:
        """Full path of image `i`, for messages; in a tar, /path/of.tar:class/name."""
        name, label = os.fsdecode(self.names[i]), self.labels[i]
        is_flat = self.flat or label < 0
        inside = name if is_flat else os.path.join(self.classes[label], name)
        return f"{self.folder}:{inside}" if self.tar else os.path.join(self.folder, inside)

    def read(self, i: int) -> bytes:
        """The encoded file of image `i`.

        Raises OSError if it cannot be read, UserError if its tar has changed since it was indexed.
        """
        if self.tar:
            return self.tar.read(i)
        with open(self.path(i), "rb") as file:
            return file.read()

    def rows_by_class(self) -> list[range]:
        """The rows of each class's images, in the order of the labels."""
        first = np.searchsorted(self.labels, np.arange(len(self.classes) + 1))
        return [range(start, stop) for start, stop in pairwise(first.tolist())]

    def only(self, rows: npt.NDArray[np.int64]) -> "ImageIndex":
        """These images, in this order."""
        tar = self.tar and self.tar.only(rows)
        return replace(self, labels=self.labels[rows], names=self.names[rows], tar=tar)

    def relabelled(self, classes: Sequence[str]) -> "ImageIndex":
        """The same images with their classes numbered as in `classes`, in that order.

        Raises UserError if `classes` lacks one of theirs.
        """
        if list(classes) == self.classes:
            return self
        unknown = sorted(set(self.classes) - set(classes))
        if unknown:
            raise UserError(
                f"{self.folder} has a class {unknown[0]!r} ({len(unknown)} such) that the training "
                "set does not have: remove it, or add its training images; or give eval.py the "
                "data.root that the network was trained on"
            )
        new_label = {name: label for label, name in enumerate(classes)}
        # The last entry is for images without a label, whose label is -1.
        table = np.array([*(new_label[name] for name in self.classes), -1], np.int64)
        index = replace(self, classes=list(classes), labels=table[self.labels])
        return index.only(np.argsort(index.labels, kind="stable"))

    def remarks(self) -> list[str]:
        """Sentences on what a user may not expect: files not used, classes without images."""
        sentences = [self.left_out] if self.left_out else []
        rows = self.rows_by_class()
        lacking = [name for name, part in zip(self.classes, rows, strict=True) if not part]
        if lacking and (self.labels >= 0).any():
            sentences.append(
                f"{self.folder} has no image of {len(lacking):,} of {len(self.classes):,} classes, "
                f"such as {lacking[0]}: errors are on the others"
            )
        return sentences

    def fingerprint(self) -> str:
        """Hex SHA-256 of all labels, class and file names: equal where the data set is the same.

        Independent of the layout and the place of the data set. No image is read.
        """
        digest = hashlib.sha256()
        num_unlabelled = int(np.searchsorted(self.labels, 0))
        if num_unlabelled:
            digest.update(b"\0".join([b"-1", b"", *self.names[:num_unlabelled].tolist()]) + b"\0\0")
        for label, (name, rows) in enumerate(zip(self.classes, self.rows_by_class(), strict=True)):
            files = self.names[rows.start : rows.stop].tolist()
            digest.update(b"\0".join([b"%d" % label, os.fsencode(name), *files]) + b"\0\0")
        return digest.hexdigest()
