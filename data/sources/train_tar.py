"""The training tar of ImageNet 2012: one uncompressed tar of images for each class."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tqdm import tqdm

from data.sources.cache import OnProgress, no_report
from data.sources.folders import SCAN_THREADS
from data.sources.tars import BrokenTar, Images, list_images, members, open_tar, readable


@dataclass(frozen=True)
class ClassTar:
    """A member of the training tar: one class."""

    name: str  # n01440764
    start: int  # first byte of its tar in the training tar
    stop: int  # the byte after its last


@dataclass(frozen=True)
class TrainTar:
    """What is in a training tar, whole classes only."""

    classes: list[ClassTar]  # in order of name
    images: list[Images]  # of each
    faults: list[str]  # what is wrong with the tar, first things first; empty: it is whole

    @property
    def num_images(self) -> int:
        return sum(len(one.names) for one in self.images)


def _class_tars(path: Path) -> tuple[list[ClassTar], str]:
    """The class tars of a training tar in order of name, and what is wrong with it, if anything."""
    classes, fault = list[ClassTar](), ""
    with open_tar(path) as file, readable(path):
        try:
            for member in members(file):
                name = member.name.rpartition("/")[2]
                if member.isreg() and name.endswith(".tar") and not name.startswith("."):
                    start = member.offset_data
                    classes.append(ClassTar(name[:-4], start, start + member.size))
        except BrokenTar as error:
            fault = str(error)
    return sorted(classes, key=lambda one: one.name), fault


def read_train_tar(path: Path, on_progress: OnProgress = no_report) -> TrainTar:
    """All that the headers of a training tar say, many classes at a time.

    Of two whole class tars of one name the last is taken, which the tar program would keep. Raises
    UserError only if the file cannot be read: a damaged one is described.
    """

    def images_of(one: ClassTar) -> Images:
        with open_tar(path) as file, readable(path):
            file.seek(one.start)
            return list_images(file, one.stop)

    classes, fault = _class_tars(path)
    faults = [fault] if fault else []
    if not classes and not fault:
        faults = ["holds no class tars, such as n01440764.tar"]
    for one, other in pairwise(classes):
        if one.name == other.name:
            faults.append(f"holds {one.name}.tar twice")
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        found = pool.map(images_of, classes)
        bar = tqdm(found, f"indexing {path.name}", len(classes), unit="class", disable=None)
        images = list[Images]()
        for listed in bar:
            images.append(listed)
            on_progress()
    for one, listed in zip(classes, images, strict=True):
        if listed.fault:
            faults.append(f"{listed.fault}, in {one.name}.tar")
        elif not len(listed.names):
            faults.append(f"has no image in {one.name}.tar")
    every = zip(classes, images, strict=True)
    whole = {one.name: (one, listed) for one, listed in every if not listed.fault}
    return TrainTar([one for one, _ in whole.values()], [i for _, i in whole.values()], faults)
