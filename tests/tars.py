"""A scaled-down ImageNet as it is distributed: nested tars, and a devkit with a real meta.mat."""

import io
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io

from tests.pictures import jpeg

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
TEST, DEVKIT = "ILSVRC2012_img_test_v10102019.tar", "ILSVRC2012_devkit_t12.tar.gz"
INNER_NODES = 3  # of WordNet, above the classes
FIELDS = (
    *("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children"),
    *("wordnet_height", "num_train_images"),
)


@dataclass
class Official:
    """What was written, as an independent truth."""

    root: Path
    wnids: list[str]  # in ILSVRC2012_ID order
    train: dict[str, dict[str, bytes]]  # class -> file name -> content
    val: dict[str, bytes]  # file name -> content
    val_wnids: dict[str, str]  # file name -> class
    test: dict[str, bytes]

    @property
    def classes(self) -> list[str]:
        return sorted(self.wnids)


def write_official(
    root: Path,
    num_classes: int = 20,
    picture: Callable[[int], bytes] = lambda seed: jpeg(40 + seed % 23, 44 + seed % 17, seed),
) -> Official:
    """Three to five training, two validation images a class; five test images; in mixed order."""
    rng = np.random.default_rng(num_classes)
    classes = [f"n{1440764 + 7919 * k:08d}" for k in range(num_classes)]
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
    root.mkdir(parents=True)
    (root / TRAIN).write_bytes(nested(official.train))
    (root / VAL).write_bytes(tar_of(dict(reversed(val.items()))))
    (root / TEST).write_bytes(tar_of({f"test/{name}": data for name, data in test.items()}))
    truth = [wnids.index(wnid) + 1 for wnid in val_wnids.values()]
    counts = {wnid: len(files) for wnid, files in train.items()}
    write_devkit(root / DEVKIT, meta_mat(wnids, counts), truth)
    age(root)
    return official


def tar_of(files: dict[str, bytes], **options: int) -> bytes:
    """A tar of these files in this order."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", **options) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return whole.getvalue()


def nested(train: dict[str, dict[str, bytes]]) -> bytes:
    """The training tar: one tar for each class; neither classes nor images are sorted."""
    inner = {wnid: tar_of(dict(reversed(files.items()))) for wnid, files in train.items()}
    return tar_of({f"{wnid}.tar": inner[wnid] for wnid in sorted(inner, key=lambda w: w[::-1])})


def meta_mat(wnids: list[str], num_train: dict[str, int] | None = None) -> bytes:
    """meta.mat with these classes in ILSVRC2012_ID order, and inner nodes after them."""
    count = len(wnids)
    synsets = np.zeros((count + INNER_NODES, 1), [(name, object) for name in FIELDS])
    for k, wnid in enumerate(wnids):
        words = f"{wnid} fish, Piscis {k}"
        count_of = (num_train or {}).get(wnid, 1300)
        synsets[k, 0] = (k + 1, wnid, words, "a fish", 0, np.zeros((1, 0)), 0, count_of)
    for k in range(INNER_NODES):
        row = (count + 1 + k, f"n{k:08d}", "entity", "what is", 2, np.array([[1, 2]]), k + 1, 0)
        synsets[count + k, 0] = row
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets}, do_compression=True)
    return file.getvalue()


def write_devkit(path: Path, meta: bytes, truth: list[int]) -> None:
    files = {
        "readme.txt": b"This is the documentation of the ILSVRC2012 Development Kit.",
        "data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{i}\n" for i in truth).encode(),
        "data/meta.mat": meta,
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def age(root: Path, seconds: float = 60.0) -> None:
    """Make all files look as if they were last changed long ago."""
    then = time.time() - seconds
    for path in root.iterdir():
        os.utime(path, (then, then))


def unpack(official: Official, root: Path) -> Path:
    """The folder layout, by the tar program, as one does by hand."""
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
