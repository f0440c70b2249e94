"""prepare_imagenet.py subset: the first classes and images, from tars or folders."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from data.prepare.write import subset_index
from data.sources.index import scan_folder
from tests.preparing import prepare, refused, tree
from tests.tars import Official, unpack, write_official

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return write_official(tmp_path / "official", picture=lambda seed: b"%d" % seed * (100 + seed))


@pytest.fixture
def roots(official: Official, tmp_path: Path) -> list[Path]:
    """The same data set in both layouts."""
    return [official.root, unpack(official, tmp_path / "folder")]


def first(official: Official, wanted: Callable[[int], int], classes: int = 20) -> dict[str, bytes]:
    """The first wanted(k) images of each class k of the first classes, by name."""
    chosen = {}
    for place, wnid in enumerate(official.classes[:classes]):
        val = sorted(name for name, other in official.val_wnids.items() if other == wnid)
        for name in sorted(official.train[wnid])[: wanted(place)]:
            chosen[f"train/{wnid}/{name}"] = official.train[wnid][name]
        for name in val[: wanted(place)]:
            chosen[f"val/{wnid}/{name}"] = official.val[name]
    return chosen


def test_classes(official: Official, roots: list[Path], tmp_path: Path) -> None:
    for place, root in enumerate(roots):
        out = tmp_path / f"out{place}"
        done = prepare("subset", root, out, "--classes", 3)
        assert tree(out) == first(official, lambda _: 99, 3)
        assert f"type data=folder data.root={out}" in done.stdout
        assert scan_folder(out, "train").classes == official.classes[:3]
    prepare("subset", roots[0], out, "--classes", 5)  # more classes, beside those that are there
    assert tree(out) == first(official, lambda _: 99, 5)
    sentence = refused("subset", roots[0], out, "--classes", 4).stderr
    assert f"{out}/train/{official.classes[4]} (and 1 more) is not what" in sentence


@pytest.mark.parametrize(
    ("amounts", "wanted", "classes"),
    [
        ({"per_class": 1}, lambda _: 1, 20),
        ({"classes": 2, "per_class": 2}, lambda _: 2, 2),
        ({"images": 23}, lambda place: 1 + (place < 3), 20),
        ({"classes": 4, "images": 6}, lambda place: 1 + (place < 2), 4),
        ({"classes": 2, "per_class": 100}, lambda _: 100, 2),  # a class gives what it has
    ],
)
def test_amounts(
    official: Official,
    roots: list[Path],
    amounts: dict[str, int],
    wanted: Callable[[int], int],
    classes: int,
) -> None:
    truth = first(official, wanted, classes)
    for root in roots:
        images = {}
        for split in ("train", "val"):
            index = subset_index(root, split, **amounts)
            assert index.classes == official.classes[:classes]
            for i, name in enumerate(index.names.tolist()):
                wnid = index.classes[index.labels[i]]
                images[f"{split}/{wnid}/{name.decode()}"] = index.read(i)
        assert images == truth


def test_refused(official: Official, tmp_path: Path) -> None:
    assert "needs --classes" in refused("subset", official.root, tmp_path / "out").stderr
    sentence = refused("subset", official.root, official.root, "--classes", 2).stderr
    assert "is the data set itself" in sentence
    with pytest.raises(UserError, match="has 20 classes, not --classes 21"):
        subset_index(official.root, "train", classes=21)
    with pytest.raises(UserError, match="--images 19 is less than one for each of 20 classes"):
        subset_index(official.root, "train", images=19)
