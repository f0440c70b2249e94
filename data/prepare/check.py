"""Whether a folder holds ImageNet as it was distributed: MD5 sums, headers, counts, decoding.

Training reads through data/sources/index.py, which stops at the first fault; this lists them all.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from data.prepare.pool import over_images
from data.prepare.release import AT_LEAST, Release
from data.sources.devkit import Devkit
from data.sources.folders import refuse_closed
from data.sources.imagenet import (
    DEVKIT,
    TARS,
    find_tar,
    label_files,
    open_devkit,
    read_train_tar,
    unlabelled,
)
from data.sources.index import ImageIndex, index_folder, split_folder
from data.sources.tars import TarReader, join, list_images, open_tar, readable, stamp_of

SPLITS = ("train", "val", "test")
_CHUNK = 2**20
_LISTED = 20  # names in a sentence


@dataclass
class _Check:
    """A check in progress; each result is told as it comes up."""

    root: Path
    release: Release
    tell: Callable[[str], None]
    faults: list[str] = field(default_factory=list)  # sentences
    devkit: Devkit | None = None

    def wrong(self, name: str, fault: str) -> None:
        """Note a fault of the file or folder `name`."""
        self.faults.append(f"{name} {fault}")
        self.tell(f"WRONG: {self.faults[-1]}")


def check(
    root: Path, release: Release, tell: Callable[[str], None], *, md5: bool, decode: int
) -> list[str]:
    """Everything that is wrong with the official tars, or train/, val/ and test/, in `root`.

    tell: prints a line. md5: whether to compare MD5 sums. decode: how many processes decode all
    images; 0: none. Returns sentences. Raises UserError if there is no data set.
    """
    refuse_closed(root)
    if not root.is_dir():
        raise UserError(f"no data set at {root}: give the folder that holds ImageNet's tars")
    paths = {
        split: [path for path in (find_tar(root, split), split_folder(root, split)) if path]
        for split in SPLITS
    }
    if not any(paths.values()):
        raise UserError(f"{root} holds neither {TARS['train'][0]} and the like nor train/ and val/")
    run = _Check(root, release, tell)
    if md5:
        _check_md5(run)
    _open_devkit(run)
    for split in SPLITS:
        if not paths[split]:
            missing = f"has neither {TARS[split][0]} nor a folder {split}/"
            if split == "test":
                tell(f"{root} {missing}: only a submission needs it")
            else:
                run.wrong(str(root), f"{missing}: download it")
        for path in paths[split]:
            try:
                in_tar = path == find_tar(root, split)
                index = _index_tar(run, path) if in_tar else index_folder(root, split)
            except UserError as error:
                run.wrong(path.name, f"cannot be used: {error}")
                continue
            _check_counts(run, split, index)
            if decode and len(index):
                _check_images(run, split, index, num_workers=decode)
    return run.faults


def _check_md5(run: _Check) -> None:
    for name, expected in run.release.md5.items():
        path = run.root / name
        if not path.is_file():
            continue
        try:
            md5 = _md5(path)
        except UserError as error:
            run.wrong(name, f"cannot be read to its end: {error}")
            continue
        if md5 == expected:
            run.tell(f"{name}: MD5 {md5}, as it should be")
        else:
            run.wrong(name, f"has the MD5 {md5} instead of {expected}: download it again")


def _md5(path: Path) -> str:
    digest, size = hashlib.md5(usedforsecurity=False), path.stat().st_size
    with (
        readable(path),
        open(path, "rb", buffering=0) as file,
        tqdm.wrapattr(file, "read", size, desc=f"MD5 of {path.name}", disable=None) as watched,
    ):
        while chunk := watched.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _open_devkit(run: _Check) -> None:
    """Only the tars cannot do without it."""
    is_there = bool(label_files(run.root))
    if not is_there and not any(find_tar(run.root, split) for split in SPLITS):
        run.tell(f"{DEVKIT} is not there: labels are not compared with it")
        return
    try:
        run.devkit = open_devkit(run.root)
    except UserError as error:
        run.wrong(DEVKIT, f"cannot be used: {error}" if is_there else f"is missing: {error}")


def _index_tar(run: _Check, path: Path) -> ImageIndex:
    """The intact images of an official tar (of train: of its intact classes); notes its faults.

    Without a devkit, validation images have no labels. Raises UserError if it cannot be read.
    """
    stamp, devkit = stamp_of(path), run.devkit
    if path.name in TARS["train"]:
        tar = read_train_tar(path)
        classes, images, faults = list(tar.classes), join(list(tar.classes.values())), tar.faults
        labels = np.repeat(np.arange(len(classes)), tar.counts)
    else:
        with open_tar(path) as file, readable(path):
            images = list_images(file)
        classes, faults = devkit.classes if devkit else [], [images.fault]
        labels = np.full(len(images), -1)
        if path.name in TARS["val"] and devkit:
            labels = devkit.labels_of(images.names)
            faults.append(unlabelled(images.names[labels < 0], devkit))
    for fault in filter(None, faults):
        run.wrong(path.name, fault)
    reader = TarReader(str(path), stamp[:2], offsets=images.offsets, sizes=images.sizes)
    index = ImageIndex(classes, labels, folder=str(path), names=images.names, tar=reader)
    return index.only(np.argsort(labels, kind="stable"))


def _check_counts(run: _Check, split: str, index: ImageIndex) -> None:
    """Compare the classes and the numbers of images with the release."""
    name, expected = Path(index.folder).name, run.release.num_images[split]
    rows = zip(index.classes, index.rows_by_class(), strict=True)
    counts = {wnid: len(images) for wnid, images in rows}
    text = f"{name}: {len(index):,} images"
    if any(counts.values()):
        per_class = _span(min(counts.values()), max(counts.values()))
        text += f" of {len(counts):,} classes, {per_class} a class"
    for line in (text, *index.remarks()):
        run.tell(line)
    if len(index) != expected:
        run.wrong(name, f"has {len(index):,} images, not {expected:,}")
    if counts and split != "test":
        _check_classes(run, name, set(counts))
        bounds = _bounds(run, split)
        if odd := [
            f"{wnid} ({count:,}, not {_span(*bounds[wnid])})"
            for wnid, count in counts.items()
            if not bounds[wnid][0] <= count <= bounds[wnid][1]
        ]:
            run.wrong(name, f"has another number of images of {_some(odd)}")
    in_folders = split == "val" and not index.tar
    if in_folders and run.devkit and (misplaced := _misplaced(index, run.devkit)):
        run.wrong(name, f"has images in the folder of another class: {_some(misplaced)}")


def _check_classes(run: _Check, name: str, classes: set[str]) -> None:
    if not run.devkit:  # only their number is known
        if len(classes) != run.release.num_classes:
            run.wrong(name, f"has {len(classes):,} classes, not {run.release.num_classes:,}")
        return
    expected = set(run.devkit.classes)
    if lacking := sorted(expected - classes):
        run.wrong(name, f"lacks the classes {_some(lacking)}")
    if unknown := sorted(classes - expected):
        run.wrong(name, f"has classes unknown to {DEVKIT}: {_some(unknown)}")


def _bounds(run: _Check, split: str) -> dict[str, tuple[int, int]]:
    """Class -> the fewest and the most images it may have, by the devkit or by the release."""
    bounds = defaultdict[str, tuple[int, int]](lambda: run.release.per_class[split])
    if run.devkit and split == "val":
        counts = np.bincount(run.devkit.val_labels, minlength=len(run.devkit.wnids)).tolist()
        bounds |= {wnid: (n, n) for wnid, n in zip(run.devkit.classes, counts, strict=True)}
    elif run.devkit and sum(run.devkit.num_train.values()) == run.release.num_images["train"]:
        bounds |= {wnid: (n, n) for wnid, n in run.devkit.num_train.items()}
    return bounds


def _misplaced(index: ImageIndex, devkit: Devkit) -> list[str]:
    """Validation images in the folder of another class than the devkit's, as class/name."""
    expected = devkit.labels_of(index.names)
    label_of = {wnid: label for label, wnid in enumerate(devkit.classes)}
    labels = np.array([label_of.get(wnid, -1) for wnid in index.classes], np.int64)[index.labels]
    rows = np.flatnonzero((expected != labels) & (expected >= 0))
    return ["/".join(Path(index.path(i)).parts[-2:]) for i in rows.tolist()]


def _check_images(run: _Check, split: str, index: ImageIndex, *, num_workers: int) -> None:
    """Decode all images, and compare the odd ones with those that are known."""
    from data.prepare.odd_images import COMMON, odd_images  # imports torch: seconds

    name = Path(index.folder).name
    names, counts = defaultdict[str, set[str]](set), Counter[str]()
    for batch in over_images(odd_images, index, num_workers=num_workers, title=f"decoding {name}"):
        for image in batch:
            if image.unreadable:
                counts["unreadable"] += 1
                run.wrong(name, f"has the unreadable image {image.path} ({image.unreadable})")
            counts.update(image.kinds)
            for kind in image.kinds:
                if kind not in COMMON:
                    names[kind].add(Path(image.path).stem)
                    run.tell(f"{name}: {kind}: {image.path}")
    text = ", ".join(f"{kind} {count:,}" for kind, count in sorted(counts.items()))
    run.tell(f"{name}: {len(index):,} images decoded; odd ones: {text or 'none'}")
    if split != "train" or len(index) != run.release.num_images["train"]:
        return
    for kind, known in run.release.odd_images.items():
        missing, extra = set(known) - names[kind], names[kind] - set(known)
        if differing := sorted(missing if kind in AT_LEAST else missing | extra):
            run.wrong(
                name,
                f"is not as distributed: of the {len(known)} known as {kind} and those found here, "
                f"these differ: {_some(differing)}",
            )
        else:
            run.tell(f"{name}: {kind}: {', '.join(known)}: as in the set as distributed")


def _span(fewest: int, most: int) -> str:
    return f"{fewest:,}" + (f" to {most:,}" if most != fewest else "")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
