"""A small ImageNet in the files of the official one: nested tars, and a devkit with a meta.mat.

For rehearsals and tests; data/sources/ reads it like the real one.
"""

import io
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.patterns import PATTERNS, draw_image
from data.sources.imagenet import DEVKIT, TARS
from data.sources.index import ImageIndex, scan_folder

_INNER_NODES = 3  # of WordNet, above the classes
_FIELDS = (
    *("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children"),
    *("wordnet_height", "num_train_images"),
)
Files = dict[str, bytes]  # file name -> content


@dataclass
class Official:
    """What the tars and the devkit in `root` hold."""

    root: Path
    wnids: list[str]  # in ILSVRC2012_ID order
    train: dict[str, Files]  # by class
    val: Files
    val_wnids: dict[str, str]  # file name -> class
    test: Files

    @property
    def classes(self) -> list[str]:
        return sorted(self.wnids)


def write_official(official: Official, words: Mapping[str, str]) -> None:
    """Write the tars and the devkit; words: of each class. Nothing in them is sorted."""
    root, wnids = official.root, official.wnids
    root.mkdir(parents=True)
    (root / TARS["train"][0]).write_bytes(nested(official.train))
    (root / TARS["val"][0]).write_bytes(tar_of(dict(reversed(official.val.items()))))
    test = {f"test/{name}": data for name, data in official.test.items()}
    (root / TARS["test"][0]).write_bytes(tar_of(test))
    truth = [wnids.index(wnid) + 1 for wnid in official.val_wnids.values()]
    counts = {wnid: len(files) for wnid, files in official.train.items()}
    meta = meta_mat(wnids, [words[wnid] for wnid in wnids], counts)
    write_devkit(root / DEVKIT, meta, truth)


def wordnet_ids(count: int) -> list[str]:
    """Sorted names of made-up classes."""
    return [f"n{1440764 + 7919 * k:08d}" for k in range(count)]


def tar_of(files: Files, **options: int) -> bytes:
    """A tar of these files in this order."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", **options) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return whole.getvalue()


def nested(train: dict[str, Files]) -> bytes:
    """The training tar: one tar for each class; neither classes nor images are sorted."""
    inner = {wnid: tar_of(dict(reversed(files.items()))) for wnid, files in train.items()}
    return tar_of({f"{wnid}.tar": inner[wnid] for wnid in sorted(inner, key=lambda w: w[::-1])})


def meta_mat(wnids: Sequence[str], words: Sequence[str], num_train: Mapping[str, int]) -> bytes:
    """meta.mat with these classes in ILSVRC2012_ID order, and inner nodes after them."""
    import scipy.io

    count = len(wnids)
    synsets = np.zeros((count + _INNER_NODES, 1), [(name, object) for name in _FIELDS])
    for k, wnid in enumerate(wnids):
        images = num_train.get(wnid, 1300)
        synsets[k, 0] = (k + 1, wnid, words[k], "a class", 0, np.zeros((1, 0)), 0, images)
    for k in range(_INNER_NODES):
        row = (count + 1 + k, f"n{k:08d}", "entity", "what is", 2, np.array([[1, 2]]), k + 1, 0)
        synsets[count + k, 0] = row
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets}, do_compression=True)
    return file.getvalue()


def write_devkit(path: Path, meta: bytes, truth: Sequence[int]) -> None:
    """A devkit with this meta.mat and these validation labels, as ILSVRC2012_ID."""
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


@dataclass(frozen=True)
class Size:
    """Of a made-up ImageNet."""

    classes: int
    train: int  # images of each class
    val: int  # images of each class

    @property
    def per_class(self) -> dict[str, int]:
        return {"train": self.train, "val": self.val}


@dataclass(frozen=True)
class ImageClass:
    """A class's words, and its images by split."""

    words: str
    images: Mapping[str, list[bytes]]


def generated_classes(size: Size, seed: int) -> list[ImageClass]:
    """Classes of generated textures; ten look different, the others differ from them by chance."""
    names = list(PATTERNS)

    def draw(label: int) -> ImageClass:
        images = {}
        for place, (split, count) in enumerate(size.per_class.items()):
            rng = np.random.default_rng([seed, label, place])
            images[split] = [_texture(names[label % len(names)], rng) for _ in range(count)]
        return ImageClass(f"{names[label % len(names)]} {label}, generated", images)

    with ThreadPoolExecutor() as pool:  # numpy and Pillow release the interpreter's lock
        return list(pool.map(draw, range(size.classes)))


def _texture(pattern: str, rng: np.random.Generator) -> bytes:
    height, width = rng.integers(48, 80, 2).tolist()
    file = io.BytesIO()
    draw_image(pattern, rng, height, width).save(file, "JPEG", quality=85)
    return file.getvalue()


def classes_in(folder: str, size: Size) -> list[ImageClass]:
    """The first classes of a data set, with the first of their images.

    Raises UserError if it has fewer classes, or one with too few images.
    """
    splits = {split: scan_folder(folder, split) for split in size.per_class}
    if len(splits["train"].classes) < size.classes:
        raise UserError(f"{folder} has {len(splits['train'].classes)} classes, not {size.classes}")
    return [
        ImageClass(
            splits["train"].classes[label],
            {split: _first(index, label, size.per_class[split]) for split, index in splits.items()},
        )
        for label in range(size.classes)
    ]


def _first(index: ImageIndex, label: int, count: int) -> list[bytes]:
    rows = index.rows_by_class()[label][:count]
    if len(rows) < count:
        raise UserError(f"{index.folder} has {len(rows)} images of {index.classes[label]}")
    return [index.read(row) for row in rows]


def make_official(root: Path, classes: Sequence[ImageClass], seed: int) -> Official:
    """Write a data set of these classes as ImageNet is distributed, in mixed order."""
    rng = np.random.default_rng(seed)
    names = wordnet_ids(len(classes))
    by_name = dict(zip(names, classes, strict=True))
    train = {
        name: {f"{name}_{i}.JPEG": data for i, data in enumerate(each.images["train"])}
        for name, each in by_name.items()
    }
    val = [(name, data) for name, each in by_name.items() for data in each.images["val"]]
    mixed = [val[i] for i in rng.permutation(len(val))]
    files = [f"ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, len(val) + 1)]
    official = Official(
        root,
        wnids=[names[i] for i in rng.permutation(len(names))],
        train=train,
        val={file: data for file, (_, data) in zip(files, mixed, strict=True)},
        val_wnids={file: name for file, (name, _) in zip(files, mixed, strict=True)},
        test={"ILSVRC2012_test_00000001.JPEG": mixed[0][1]},
    )
    write_official(official, {name: each.words for name, each in by_name.items()})
    return official
