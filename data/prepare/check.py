"""Whether a folder holds the data set as it was distributed: sums, headers, numbers, decoding."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from data.prepare.contents import Contents, class_counts, misplaced, read_folder, read_tar
from data.prepare.facts import AT_LEAST, Facts
from data.prepare.odd_images import PLENTY, UNREADABLE, odd_images
from data.prepare.pool import over_images
from data.sources.devkit import Devkit
from data.sources.folders import refuse_closed
from data.sources.imagenet import DEVKIT, TARS, find_tar, open_devkit
from data.sources.index import ImageIndex
from data.sources.tars import readable

SPLITS = ("train", "val", "test")
_CHUNK = 2**20
_LISTED = 20  # names in a sentence


@dataclass
class Report:
    """What was found, told line by line as it is found."""

    tell: Callable[[str], None]
    wrong: list[str] = field(default_factory=list)  # sentences, all of them

    def add(self, where: str, faults: Sequence[str]) -> None:
        """These things are wrong with a file or folder."""
        for fault in faults:
            self.wrong.append(f"{where} {fault}")
            self.tell(f"WRONG: {self.wrong[-1]}")


def check(root: Path, facts: Facts, report: Report, *, md5: bool, decode: int) -> None:
    """Look at all that is in `root`: the official tars, or train/, val/ and test/, or both.

    md5: whether to compare sums. decode: how many processes decode all images; 0: none is decoded.
    Raises UserError if there is no data set.
    """
    refuse_closed(root)
    if not root.is_dir():
        raise UserError(f"no data set at {root}: give the folder that holds ImageNet's tars")
    places = _places(root)
    if not places:
        raise UserError(f"{root} holds neither {TARS['train'][0]} and the like nor train/ and val/")
    if md5:
        _check_sums(root, facts, report)
    devkit = _check_devkit(root, report)
    for split in SPLITS:
        if split not in {found for found, _ in places}:
            missing = f"has neither {TARS[split][0]} nor a folder {split}/"
            if split == "test":
                report.tell(f"{root} {missing}: only a submission needs it")
            else:
                report.add(str(root), [f"{missing}: download it"])
    for split, path in places:
        try:
            is_folder = path.name == split
            found = read_folder(path, split) if is_folder else read_tar(path, split, devkit)
        except UserError as error:
            report.add(path.name, [f"cannot be used: {error}"])
            continue
        _check_contents(path, split, found, facts, devkit, report)
        if decode and len(found.index):
            _check_images(path.name, split, found.index, facts, decode, report)


def _places(root: Path) -> list[tuple[str, Path]]:
    """(split, tar or folder) of all that is there."""
    found = []
    for split in SPLITS:
        tar, folder = find_tar(root, split), root / split
        found += [(split, tar)] if tar else []
        found += [(split, folder)] if folder.is_dir() else []
    return found


def _check_devkit(root: Path, report: Report) -> Devkit | None:
    """The devkit. Only the tars cannot do without it."""
    is_there = os.path.lexists(root / DEVKIT)
    if not is_there and not any(find_tar(root, split) for split in SPLITS):
        report.tell(f"{DEVKIT} is not there: labels are not compared with it")
        return None
    try:
        return open_devkit(root)
    except UserError as error:
        report.add(DEVKIT, [f"cannot be used: {error}" if is_there else f"is missing: {error}"])
        return None


def _check_sums(root: Path, facts: Facts, report: Report) -> None:
    """Compare the MD5 sums of the official files, all at a time."""
    official = [name for split in SPLITS for name in TARS[split]] + [DEVKIT]
    names = [name for name in official if (root / name).is_file()]
    stop, size = Event(), sum((root / name).stat().st_size for name in names)
    with (
        tqdm(total=size, desc="MD5", unit="B", unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(max(len(names), 1)) as pool,
    ):
        try:
            sums = [pool.submit(md5_of, root / name, bar, stop) for name in names]
            for name, future in zip(names, sums, strict=True):
                known = facts.md5.get(name)
                try:
                    found = future.result()
                except UserError as error:
                    report.add(name, [f"cannot be read to its end: {error}"])
                    continue
                if known is None:
                    report.tell(f"{name}: MD5 {found}, of which nothing is known")
                elif found == known.lower():
                    report.tell(f"{name}: MD5 {found}, as it should be")
                else:
                    what = f"has the MD5 {found} instead of {known}: download it again"
                    report.add(name, [what])
        finally:
            stop.set()  # after Ctrl-C, nobody waits for 138 GB to be read


def md5_of(path: Path, bar: tqdm, stop: Event) -> str:
    """Hex MD5 of a file, read piece by piece. Raises UserError if it cannot be read."""
    digest = hashlib.md5(usedforsecurity=False)
    with readable(path), open(path, "rb", buffering=0) as file:
        while not stop.is_set() and (chunk := file.read(_CHUNK)):
            digest.update(chunk)
            with bar.get_lock():
                bar.update(len(chunk))
    return digest.hexdigest()


def _check_contents(
    path: Path, split: str, found: Contents, facts: Facts, devkit: Devkit | None, report: Report
) -> None:
    """Compare classes and numbers of images."""
    index, name = found.index, path.name
    counts = class_counts(index)
    text = f"{name}: {len(index):,} images"
    if any(counts.values()):
        amounts = _amounts(min(counts.values()), max(counts.values()))
        text += f" of {len(counts):,} classes, {amounts} a class"
    report.tell(text)
    report.add(name, found.faults)
    if found.faults and index.tar and devkit:
        usable = len(index) if split == "test" else int((index.labels >= 0).sum())
        if usable:
            report.tell(f"(extract --partial saves {usable:,} images)")
    expected = facts.num_images.get(split, len(index))
    if len(index) != expected:
        report.add(name, [f"has {len(index):,} images, not {expected:,}"])
    if counts and split != "test":
        report.add(name, _class_faults(counts, devkit.classes if devkit else [], facts))
        report.add(name, _count_faults(counts, _exact_counts(split, devkit, facts), split, facts))
    if split == "val" and devkit and not index.tar and (wrong := misplaced(index, devkit)):
        report.add(name, [f"has images in the folder of another class: {_some(wrong)}"])


def _class_faults(counts: dict[str, int], classes: list[str], facts: Facts) -> list[str]:
    """What is wrong with the classes; without a devkit only their number is known."""
    if not classes:
        what = f"has {len(counts):,} classes, not {facts.num_classes:,}"
        return [what] if len(counts) != facts.num_classes else []
    lacking = sorted(set(classes) - set(counts))
    unknown = sorted(set(counts) - set(classes))
    faults = [f"lacks the classes {_some(lacking)}"] if lacking else []
    return faults + ([f"has classes unknown to {DEVKIT}: {_some(unknown)}"] if unknown else [])


def _count_faults(
    counts: dict[str, int], exact: dict[str, int], split: str, facts: Facts
) -> list[str]:
    """Classes that have too few or too many images."""
    fewest, most = facts.per_class.get(split, [0, sum(counts.values())])
    odd = [
        f"{name} ({count:,}, not {exact.get(name) or _amounts(fewest, most)})"
        for name, count in counts.items()
        if not exact.get(name, fewest) <= count <= exact.get(name, most)
    ]
    return [f"has another number of images of {_some(odd)}"] if odd else []


def _exact_counts(split: str, devkit: Devkit | None, facts: Facts) -> dict[str, int]:
    """Class -> its number of images as the devkit has it; of train only if it adds up."""
    if devkit is None:
        return {}
    if split == "train":
        adds_up = sum(devkit.num_train.values()) == facts.num_images.get("train")
        return devkit.num_train if adds_up else {}
    counts = np.bincount(devkit.val_labels, minlength=len(devkit.wnids))
    return dict(zip(devkit.classes, counts.tolist(), strict=True))


def _check_images(
    name: str, split: str, index: ImageIndex, facts: Facts, workers: int, report: Report
) -> None:
    """Decode all images, and compare the odd ones with those known."""
    found, amount = defaultdict[str, list[str]](list), defaultdict[str, int](int)
    for part in over_images(odd_images, index, workers, f"decoding {name}"):
        for i, kind, reason in part:
            path = index.path(i)
            amount[kind] += 1
            if kind == UNREADABLE:
                report.add(name, [f"has the unreadable image {path} ({reason})"])
            elif kind not in PLENTY:
                found[kind].append(Path(path).stem)
                report.tell(f"{name}: {kind}: {path}")
    numbers = ", ".join(f"{kind} {count:,}" for kind, count in sorted(amount.items()))
    report.tell(f"{name}: {len(index):,} images decoded; odd ones: {numbers or 'none'}")
    if split != "train" or len(index) != facts.num_images.get("train"):
        return
    for kind, known in facts.odd.items():
        here = set(found[kind])
        differing = sorted(set(known) - here if kind in AT_LEAST else set(known) ^ here)
        if differing:
            what = f"is not as distributed: of the {len(known)} known as {kind} "
            report.add(name, [what + f"and those found so, these differ: {_some(differing)}"])
        else:
            report.tell(f"{name}: {kind}: {', '.join(known)}: as in the set as distributed")


def _amounts(fewest: int, most: int) -> str:
    return f"{fewest:,}" + (f" to {most:,}" if most != fewest else "")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
