"""A small made-up ImageNet in the official files: nested tars, and a devkit with a meta.mat.

For rehearsals and tests; data/sources/ reads it like the real one.
"""

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.patterns import PATTERNS, draw_image
from data.sources.devkit import META, TRUTH
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
    """Write the tars and the devkit; words: of each class. No file in them is in order."""
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


def tar_of(files: Files) -> bytes:
    """A tar of these files in this order."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


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
        TRUTH: "".join(f"{i}\n" for i in truth).encode(),
        META: meta,
    }
    tar = tar_of({f"ILSVRC2012_devkit_t12/{name}": data for name, data in files.items()})
    path.write_bytes(gzip.compress(tar))


@dataclass(frozen=True)
class Size:
    """How many classes and images a made-up ImageNet has."""

    classes: int
    train: int  # images of each class
    val: int  # images of each class


@dataclass(frozen=True)
class ImageClass:
    """The words for a class, and its encoded images."""

    words: str
    train: list[bytes]
    val: list[bytes]


def generated_classes(size: Size, seed: int) -> list[ImageClass]:
    """Classes of generated textures; ten look different, the others differ from them by chance."""
    patterns = list(PATTERNS)

    def draw(label: int) -> ImageClass:
        pattern = patterns[label % len(patterns)]
        train_rng, val_rng = (np.random.default_rng([seed, label, split]) for split in (0, 1))
        return ImageClass(
            f"{pattern} {label}, generated",
            train=[_texture(pattern, train_rng) for _ in range(size.train)],
            val=[_texture(pattern, val_rng) for _ in range(size.val)],
        )

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
    train, val = scan_folder(folder, "train"), scan_folder(folder, "val")
    if len(train.classes) < size.classes:
        raise UserError(f"{folder} has {len(train.classes)} classes, not {size.classes}")
    return [
        ImageClass(name, _first(train, label, size.train), _first(val, label, size.val))
        for label, name in enumerate(train.classes[: size.classes])
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
        name: {f"{name}_{i}.JPEG": data for i, data in enumerate(image_class.train)}
        for name, image_class in by_name.items()
    }
    val = [(name, data) for name in names for data in by_name[name].val]
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
    write_official(official, {name: by_name[name].words for name in names})
    return official
