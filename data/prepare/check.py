"""Whether a folder holds ImageNet as it was distributed: MD5 sums, headers, numbers, decoding.

Training reads by data/sources/index.py, which stops at the first fault; here all are listed.
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
    """A check in progress; results are told line by line as they come up."""

    root: Path
    release: Release
    tell: Callable[[str], None]
    faults: list[str] = field(default_factory=list)  # sentences
    devkit: Devkit | None = None

    def wrong(self, name: str, fault: str) -> None:
        """Something is wrong with a file or folder."""
        self.faults.append(f"{name} {fault}")
        self.tell(f"WRONG: {self.faults[-1]}")


def check(
    root: Path, release: Release, tell: Callable[[str], None], *, md5: bool, decode: int
) -> list[str]:
    """Everything that is wrong with the official tars, or train/, val/ and test/, in `root`.

    tell: prints a line. md5: whether to compare sums. decode: the number of processes that decode
    all images; 0: none is decoded. Returns sentences. Raises UserError if there is no data set.
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
        _check_sums(run)
    _check_devkit(run)
    for split in SPLITS:
        missing = f"has neither {TARS[split][0]} nor a folder {split}/"
        if not paths[split] and split == "test":
            tell(f"{root} {missing}: only a submission needs it")
        elif not paths[split]:
            run.wrong(str(root), f"{missing}: download it")
    for split in SPLITS:
        for path in paths[split]:
            try:
                in_tar = path == find_tar(root, split)
                index = _read_tar(run, path) if in_tar else index_folder(root, split)
            except UserError as error:
                run.wrong(path.name, f"cannot be used: {error}")
                continue
            _check_numbers(run, split, index)
            if decode and len(index):
                _check_images(run, split, index, num_workers=decode)
    return run.faults


def _check_devkit(run: _Check) -> None:
    """Only the tars cannot do without it."""
    is_there = bool(label_files(run.root))
    if not is_there and not any(find_tar(run.root, split) for split in SPLITS):
        run.tell(f"{DEVKIT} is not there: labels are not compared with it")
        return
    try:
        run.devkit = open_devkit(run.root)
    except UserError as error:
        run.wrong(DEVKIT, f"cannot be used: {error}" if is_there else f"is missing: {error}")


def _check_sums(run: _Check) -> None:
    """Compare the MD5 sums of the official files."""
    for name, expected in run.release.md5.items():
        if not (run.root / name).is_file():
            continue
        try:
            md5 = _md5_of(run.root / name)
        except UserError as error:
            run.wrong(name, f"cannot be read to its end: {error}")
            continue
        if md5 == expected:
            run.tell(f"{name}: MD5 {md5}, as it should be")
        else:
            run.wrong(name, f"has the MD5 {md5} instead of {expected}: download it again")


def _md5_of(path: Path) -> str:
    """Hex MD5 of a file. Raises UserError if it cannot be read."""
    digest, size = hashlib.md5(usedforsecurity=False), path.stat().st_size
    with (
        readable(path),
        open(path, "rb", buffering=0) as file,
        tqdm(
            total=size, desc=f"MD5 of {path.name}", unit="B", unit_scale=True, disable=None
        ) as bar,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _read_tar(run: _Check, path: Path) -> ImageIndex:
    """The intact images of an official tar (of train, of intact classes); notes its faults.

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
        labels = np.full(len(images), -1, np.int64)
        if path.name in TARS["val"] and devkit:
            labels = devkit.labels_of(images.names)
            faults.append(unlabelled(images.names[labels < 0], devkit))
    for fault in filter(None, faults):
        run.wrong(path.name, fault)
    index = ImageIndex(
        classes,
        labels.astype(np.int64),
        folder=str(path),
        names=images.names,
        tar=TarReader(str(path), stamp[:2], offsets=images.offsets, sizes=images.sizes),
    )
    return index.only(np.argsort(labels, kind="stable"))


def _check_numbers(run: _Check, split: str, index: ImageIndex) -> None:
    """Compare the classes and the numbers of images."""
    name, rows = Path(index.folder).name, index.rows_by_class()
    counts = {wnid: len(part) for wnid, part in zip(index.classes, rows, strict=True)}
    text = f"{name}: {len(index):,} images"
    if any(counts.values()):
        amounts = _span(min(counts.values()), max(counts.values()))
        text += f" of {len(counts):,} classes, {amounts} a class"
    for line in (text, *index.remarks()):
        run.tell(line)
    expected = run.release.num_images.get(split, len(index))
    if len(index) != expected:
        run.wrong(name, f"has {len(index):,} images, not {expected:,}")
    if counts and split != "test":
        _check_classes(run, name, set(counts))
        _check_counts(run, name, counts, split=split)
    in_folders = split == "val" and not index.tar
    if in_folders and run.devkit and (misplaced := _misplaced(index, run.devkit)):
        run.wrong(name, f"has images in the folder of another class: {_some(misplaced)}")


def _check_classes(run: _Check, name: str, classes: set[str]) -> None:
    """Without a devkit only their number is known."""
    expected = set(run.devkit.classes) if run.devkit else classes
    if lacking := sorted(expected - classes):
        run.wrong(name, f"lacks the classes {_some(lacking)}")
    if unknown := sorted(classes - expected):
        run.wrong(name, f"has classes unknown to {DEVKIT}: {_some(unknown)}")
    if not run.devkit and len(classes) != run.release.num_classes:
        run.wrong(name, f"has {len(classes):,} classes, not {run.release.num_classes:,}")


def _check_counts(run: _Check, name: str, counts: dict[str, int], *, split: str) -> None:
    """Name the classes that have too few or too many images."""
    fewest, most = run.release.per_class.get(split, (0, sum(counts.values())))
    exact = _exact_counts(run, split)
    odd = [
        f"{wnid} ({count:,}, not {exact.get(wnid) or _span(fewest, most)})"
        for wnid, count in counts.items()
        if not exact.get(wnid, fewest) <= count <= exact.get(wnid, most)
    ]
    if odd:
        run.wrong(name, f"has another number of images of {_some(odd)}")


def _exact_counts(run: _Check, split: str) -> dict[str, int]:
    """Class -> its number of images according to the devkit; for train only if they add up."""
    if run.devkit is None:
        return {}
    if split == "train":
        adds_up = sum(run.devkit.num_train.values()) == run.release.num_images.get("train")
        return run.devkit.num_train if adds_up else {}
    counts = np.bincount(run.devkit.val_labels, minlength=len(run.devkit.wnids))
    return dict(zip(run.devkit.classes, counts.tolist(), strict=True))


def _misplaced(index: ImageIndex, devkit: Devkit) -> list[str]:
    """Validation images in the folder of another class than the devkit's, as class/name."""
    true = devkit.labels_of(index.names)
    label_of = {name: label for label, name in enumerate(devkit.classes)}
    labels = np.array([label_of.get(name, -1) for name in index.classes], np.int64)[index.labels]
    rows = np.flatnonzero((true != labels) & (true >= 0))
    return ["/".join(Path(index.path(i)).parts[-2:]) for i in rows.tolist()]


def _check_images(run: _Check, split: str, index: ImageIndex, *, num_workers: int) -> None:
    """Decode all images, and compare the odd ones with those that are known."""
    from data.prepare.odd_images import COMMON, odd_images  # imports torch: seconds

    name = Path(index.folder).name
    names, amounts = defaultdict[str, set[str]](set), Counter[str]()
    for odd in over_images(odd_images, index, num_workers=num_workers, title=f"decoding {name}"):
        for image in odd:
            if image.unreadable:
                amounts["unreadable"] += 1
                run.wrong(name, f"has the unreadable image {image.path} ({image.unreadable})")
            amounts.update(image.kinds)
            for kind in image.kinds:
                if kind not in COMMON:
                    names[kind].add(Path(image.path).stem)
                    run.tell(f"{name}: {kind}: {image.path}")
    text = ", ".join(f"{kind} {count:,}" for kind, count in sorted(amounts.items()))
    run.tell(f"{name}: {len(index):,} images decoded; odd ones: {text or 'none'}")
    if split != "train" or len(index) != run.release.num_images.get("train"):
        return
    for kind, known in run.release.odd_images.items():
        missing, more = set(known) - names[kind], names[kind] - set(known)
        if differing := sorted(missing if kind in AT_LEAST else missing | more):
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
