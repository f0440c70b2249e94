"""A small ImageNet as it is distributed: nested tars, and a devkit with a real meta.mat."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts.reproduction import official as files
from scripts.reproduction.official import Official, nested, tar_of, write_devkit
from tests.pictures import jpeg

__all__ = ["Official", "nested", "tar_of", "write_devkit"]  # beside what is defined here

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
TEST, DEVKIT = "ILSVRC2012_img_test_v10102019.tar", "ILSVRC2012_devkit_t12.tar.gz"


def words_of(wnids: list[str]) -> list[str]:
    """The names that the devkit gives these classes."""
    return [f"{wnid} fish, Piscis {k}" for k, wnid in enumerate(wnids)]


def meta_mat(wnids: list[str], num_train: dict[str, int] | None = None) -> bytes:
    return files.meta_mat(wnids, words_of(wnids), num_train or {})


def write_official(
    root: Path,
    num_classes: int = 20,
    picture: Callable[[int], bytes] = lambda seed: jpeg(40 + seed % 23, 44 + seed % 17, seed),
) -> Official:
    """Classes of three to five training and two validation images; five test images; shuffled."""
    rng = np.random.default_rng(num_classes)
    classes = files.wordnet_ids(num_classes)
    wnids = [classes[i] for i in rng.permutation(num_classes)]
    seeds = iter(range(10**6))
    train = {
        wnid: {f"{wnid}_{rng.integers(10**5)}.JPEG": picture(next(seeds)) for _ in range(3 + k % 3)}
        for k, wnid in enumerate(classes)
    }
    val_wnids = {
        f"ILSVRC2012_val_{n + 1:08d}.JPEG": classes[k // 2]
        for n, k in enumerate(rng.permutation(2 * num_classes))
    }
    val = {name: picture(next(seeds)) for name in val_wnids}
    test = {f"ILSVRC2012_test_{n:08d}.JPEG": picture(next(seeds)) for n in range(1, 6)}
    official = Official(root, wnids, train, val, val_wnids, test)
    files.write_official(official, dict(zip(wnids, words_of(wnids), strict=True)))
    age(root)
    return official


def age(root: Path, seconds: float = 60.0) -> None:
    """Make all files look as if they were last changed long ago."""
    then = time.time() - seconds
    for path in root.iterdir():
        os.utime(path, (then, then))


def unpack(official: Official, root: Path) -> Path:
    """The folder layout, made by the tar program as one would by hand."""
    (train := root / "train").mkdir(parents=True)
    extract(official.root / TRAIN, train)
    for inner in train.glob("*.tar"):
        inner.with_suffix("").mkdir()
        extract(inner, inner.with_suffix(""))
        inner.unlink()
    (val := root / "val").mkdir()
    extract(official.root / VAL, val)
    for name, wnid in official.val_wnids.items():
        (val / wnid).mkdir(exist_ok=True)
        (val / name).rename(val / wnid / name)
    return root


def extract(tar: Path, folder: Path) -> None:
    subprocess.run(["tar", "-xf", tar, "-C", folder, "--no-same-owner"], check=True)
