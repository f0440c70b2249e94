"""The index of an image folder: order, labels, cache, and what it refuses."""

import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data.sources import folders
from data.sources.imagenet import NUM_IMAGES
from data.sources.index import ImageIndex, open_dataset, scan_folder
from tests.conftest import composed

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant(
        tmp_path / "set",
        "train/n2/b.JPEG train/n2/a.png train/n1/z.jpg train/n3/q.WebP train/n3/p.bmp "
        "val/n3/v.jpeg val/n1/u.JPG",
    )


def plant(root: Path, files: str) -> Path:
    """Write files that hold their own names, in folders last changed a minute ago."""
    for name in files.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    age(root)
    return root


def age(root: Path, seconds: float = 60.0) -> None:
    then = time.time() - seconds
    for folder in (*root.glob("*"), *root.glob("*/*")):
        os.utime(folder, (then, then))


def paths(images: ImageIndex, root: Path) -> list[str]:
    return [os.path.relpath(images.path(i), root) for i in range(len(images))]


def count_listings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    listed: list[Path] = []
    real = folders.list_files
    monkeypatch.setattr(folders, "list_files", lambda f: listed.append(f) or real(f))
    return listed


def test_order_labels_and_bytes(root: Path) -> None:
    train = scan_folder(root, "train")
    assert train.classes == ["n1", "n2", "n3"]
    assert paths(train, root) == [
        *("train/n1/z.jpg", "train/n2/a.png", "train/n2/b.JPEG"),
        *("train/n3/p.bmp", "train/n3/q.WebP"),
    ]
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 1, 1, 2, 2]
    assert [train.read(i).decode() for i in range(5)] == paths(train, root)
    copy = pickle.loads(pickle.dumps(train))
    assert copy.read(4) == train.read(4)


def test_val_has_the_labels_of_train_even_if_it_lacks_a_class(root: Path) -> None:
    train, val = scan_folder(root, "train"), scan_folder(root, "val")
    assert val.classes == train.classes
    assert val.labels.tolist() == [0, 2]
    for given in ("null", "3"):
        data = composed("data=folder", f"data.root={root}", f"data.num_classes={given}").data
        assert open_dataset(data, lambda: None).num_classes == 3


def test_given_classes_set_the_labels(root: Path) -> None:
    val = scan_folder(root, "val", classes=["n3", "n2", "n1"])
    assert val.labels.tolist() == [0, 2]
    assert paths(val, root) == ["val/n3/v.jpeg", "val/n1/u.JPG"]


def test_val_alone_has_its_own_classes(root: Path) -> None:
    shutil.rmtree(root / "train")
    assert scan_folder(root, "val").classes == ["n1", "n3"]


def test_other_files_are_ignored_and_links_followed(root: Path, tmp_path: Path) -> None:
    plant(root, "train/n1/.hidden.jpg train/n1/notes.txt train/.git/x.jpg train/n1/deep.jpg/y.jpg")
    (root / "train" / "readme.jpg").write_bytes(b"")
    plant(tmp_path / "far", "some/where/linked.jpg")
    (root / "train" / "n0").symlink_to(tmp_path / "far" / "some" / "where")
    (root / "train" / "n1" / "a.jpg").symlink_to(root / "train" / "n1" / "z.jpg")
    train = scan_folder(root, "train")
    assert train.classes == ["n0", "n1", "n2", "n3"]
    assert paths(train, root)[:3] == ["train/n0/linked.jpg", "train/n1/a.jpg", "train/n1/z.jpg"]


def test_names_that_are_not_utf8(root: Path) -> None:
    name = os.fsencode(root / "train" / "n1") + b"/caf\xe9.jpg"
    with open(name, "wb") as file:
        file.write(b"latin")
    train = scan_folder(root, "train")
    assert os.fsencode(train.path(0)) == name
    assert train.read(0) == b"latin"
    assert len(train.fingerprint()) == 64


def test_second_scan_comes_from_the_cache(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scan_folder(root, "train")
    assert len(list(cache.glob("*.npz"))) == 1
    listed = count_listings(monkeypatch)
    second = scan_folder(root, "train")
    assert listed == []
    assert paths(second, root) == paths(first, root)
    assert second.labels.tolist() == first.labels.tolist()
    assert second.fingerprint() == first.fingerprint()


def test_a_changed_tree_is_scanned_again(root: Path) -> None:
    assert len(scan_folder(root, "train")) == 5
    (root / "train" / "n1" / "new.jpg").write_bytes(b"")
    assert len(scan_folder(root, "train")) == 6
    (root / "train" / "n3" / "p.bmp").unlink()
    assert len(scan_folder(root, "train")) == 5
    (root / "train" / "n3").rename(root / "train" / "n4")
    assert scan_folder(root, "train", classes=["n1", "n2", "n4"]).labels.tolist() == [0, 0, 1, 1, 2]


def test_a_folder_changed_just_now_is_not_cached(root: Path, cache: Path) -> None:
    (root / "train" / "n1" / "new.jpg").write_bytes(b"")
    scan_folder(root, "train")
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_damaged_cache_is_scanned_again(root: Path, cache: Path, damage: bytes | None) -> None:
    expected = paths(scan_folder(root, "train"), root)
    (file,) = cache.glob("*.npz")
    kept = file.read_bytes()
    file.write_bytes(kept[: len(kept) // 2] if damage is None else damage)
    assert paths(scan_folder(root, "train"), root) == expected
    assert file.read_bytes() == kept


def test_without_a_cache_folder_scanning_works(root: Path, cache: Path) -> None:
    cache.parent.write_text("a file where the cache's folder should be")
    assert len(scan_folder(root, "train")) == 5


def test_fingerprint_depends_on_names_not_on_the_place(root: Path, tmp_path: Path) -> None:
    fingerprint = scan_folder(root, "train").fingerprint()
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    assert scan_folder(moved, "train").fingerprint() == fingerprint
    assert scan_folder(moved, "train", classes=["n3", "n2", "n1"]).fingerprint() != fingerprint
    (moved / "train" / "n1" / "z.jpg").rename(moved / "train" / "n1" / "y.jpg")
    assert scan_folder(moved, "train").fingerprint() != fingerprint


def test_reading_a_missing_image_is_an_oserror(root: Path) -> None:
    train = scan_folder(root, "train")
    Path(train.path(0)).unlink()
    with pytest.raises(OSError, match=r"n1/z\.jpg"):
        train.read(0)


def test_missing_default_root_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.root=/path/to/imagenet.*data=synthetic"):
        scan_folder("datasets/imagenet", "train")


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ("val/n1/a.jpg", "train", "no folder train/"),
        ("train/n1/a.jpg", "val", "no folder val/"),
        ("train/a.jpg", "train", "no class folders"),
        ("train/n1/a.txt train/n2/b.txt", "train", r"no image \(.jpg .jpeg .png .bmp .webp\)"),
        ("train/n1/a.jpg train/n2/b.txt", "train", r"train/n2 has no image"),
        ("train/n1/a.jpg val/n1/a.jpg val/n7/a.jpg", "val", "'n7'"),
    ],
)
def test_refused_layouts(tmp_path: Path, files: str, split: str, message: str) -> None:
    root = plant(tmp_path / "set", files)
    with pytest.raises(UserError, match=message):
        scan_folder(root, split)


def test_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: type data\.root="):
        scan_folder(tmp_path / "nowhere", "train")


def test_number_of_classes_is_checked(root: Path) -> None:
    data = composed("data=folder", f"data.root={root}", "data.num_classes=1000").data
    message = r"has 3 classes but data\.num_classes=1000.*data=folder.*data\.num_classes=3"
    with pytest.raises(UserError, match=message):
        open_dataset(data, lambda: None)


def test_val_of_other_classes_is_refused(root: Path, tmp_path: Path) -> None:
    other = plant(tmp_path / "other", "val/n9/a.jpg val/n1/b.jpg")
    with pytest.raises(UserError, match=r"'n9' .* the training set does not have"):
        scan_folder(other, "val", scan_folder(root, "train").classes)


def test_a_list_as_long_as_imagenets_is_small_and_fast(root: Path, cache: Path) -> None:
    """1,281,167 names from the cache, in a second."""
    scan_folder(root, "train")
    (file,) = cache.glob("*.npz")
    with np.load(file) as kept:
        arrays = dict(kept)
    count = NUM_IMAGES["train"]
    names = np.char.add(b"n01440764_", np.arange(count).astype("S7"))
    arrays["counts"] = np.array([1, 2, count - 3])
    arrays["names"] = np.char.add(names, b".JPEG")
    np.savez(file, **arrays)
    start = time.perf_counter()
    train = scan_folder(root, "train")
    assert time.perf_counter() - start < 5.0  # a second on an idle machine
    assert len(train) == count
    assert train.names.nbytes + train.labels.nbytes < 100e6
    assert train.path(count - 1).endswith("n3/n01440764_1281166.JPEG")
