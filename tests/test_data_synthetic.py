"""The embedded set: complete, varied, deterministic, safely made, not solvable by colour."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from data import synthetic as module
from data.patterns import PATTERNS, draw_image
from data.sources.index import scan_folder
from data.synthetic import CLASSES, IMAGES, MARKER, encode_image, make_synthetic


def decoded(split: str, label: int, number: int) -> Image.Image:
    return Image.open(BytesIO(encode_image(split, label, number)))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small set, for tests of how the folder is made."""
    monkeypatch.setattr(module, "IMAGES", {"train": 3, "val": 1})


def snapshot(root: Path) -> dict[str, bytes]:
    files = [file for file in root.rglob("*") if file.is_file()]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def test_complete_and_well_formed(synthetic: Path) -> None:
    for split, count in IMAGES.items():
        images = scan_folder(synthetic, split)
        assert images.classes == list(CLASSES) == sorted(CLASSES)
        assert np.bincount(images.labels).tolist() == [count] * len(CLASSES)
    size = sum(len(data) for data in snapshot(synthetic).values())
    assert size < 60e6
    assert "generated" in (synthetic / "README.txt").read_text()


def test_kinds_of_files_are_those_of_imagenet(synthetic: Path) -> None:
    train = scan_folder(synthetic, "train")
    kinds: dict[str, int] = {}
    sizes = []
    for i in range(len(train)):
        image = Image.open(BytesIO(train.read(i)))
        sizes.append(image.size)
        names = [image.format, image.mode]
        names += ["progressive"] * ("progressive" in image.info)
        names += ["turned"] * (image.getexif().get(0x0112, 1) != 1)
        for name in names:
            kinds[str(name)] = kinds.get(str(name), 0) + 1
    share = {name: count / len(train) for name, count in kinds.items()}
    assert kinds["PNG"] == 1
    assert 0.05 < share["L"] < 0.12
    assert 0.02 < share["CMYK"] < 0.06
    assert 0.15 < share["progressive"] < 0.25
    assert 0.05 < share["turned"] < 0.15
    width, height = np.array(sizes).T
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    assert shorter.min() >= 128
    assert shorter.max() <= 320
    assert (longer / shorter).max() > 2.5
    assert 0.15 < np.mean(height > width) < 0.35


def test_images_are_the_same_each_time_and_all_different() -> None:
    keys = [(split, label, n) for split in IMAGES for label in (0, 9) for n in (0, 1)]
    files = [encode_image(*key) for key in keys]
    assert files == [encode_image(*key) for key in keys]
    assert len(set(files)) == len(files)


def test_the_version_stands_for_these_images() -> None:
    """Within 0.5, as machines may differ. Raise VERSION when this changes."""
    means = [np.asarray(decoded("val", k, 0).convert("RGB")).mean() for k in range(10)]
    assert module.VERSION == 1
    golden = [135.4, 146.8, 117.7, 133.1, 127.9, 144.0, 129.7, 128.2, 138.6, 137.7]
    assert means == pytest.approx(golden, abs=0.5)


def test_second_call_changes_nothing(few: None, tmp_path: Path) -> None:
    root = tmp_path / "set"
    make_synthetic(root)
    times = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    make_synthetic(root)
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == times
    assert [folder.name for folder in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("damage", ["file lost", "other version"])
def test_damaged_or_old_set_is_generated_again(few: None, tmp_path: Path, damage: str) -> None:
    root = tmp_path / "set"
    make_synthetic(root)
    whole = snapshot(root)
    if damage == "file lost":
        next((root / "train").glob("g04*/*")).unlink()
    else:
        (root / MARKER).write_text("version 0")
        (root / "leftover").touch()
    make_synthetic(root)
    assert snapshot(root) == whole
    assert [folder.name for folder in tmp_path.iterdir()] == ["set"]


def test_empty_folder_is_filled(few: None, tmp_path: Path) -> None:
    root = tmp_path / "deep" / "set"
    root.mkdir(parents=True)
    make_synthetic(root)
    assert len(scan_folder(root, "train")) == 30


def test_folder_with_something_else_is_left_alone(few: None, tmp_path: Path) -> None:
    photo = tmp_path / "train" / "n01440764" / "mine.JPEG"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"precious")
    with pytest.raises(UserError, match="is not the generated set"):
        make_synthetic(tmp_path)
    assert snapshot(tmp_path) == {"train/n01440764/mine.JPEG": b"precious"}


def test_a_file_at_the_path_is_refused(few: None, tmp_path: Path) -> None:
    (tmp_path / "set").write_text("x")
    with pytest.raises(UserError, match="is not the generated set"):
        make_synthetic(tmp_path / "set")
    with pytest.raises(UserError, match="cannot generate"):
        make_synthetic(tmp_path / "set" / "below")


def test_failure_leaves_nothing(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*place: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "encode_image", full)
    with pytest.raises(UserError, match="No space left"):
        make_synthetic(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_concurrent_calls_leave_one_whole_set(few: None, tmp_path: Path) -> None:
    root = tmp_path / "set"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make_synthetic, [root] * 4))
    assert [folder.name for folder in tmp_path.iterdir()] == ["set"]
    raced = snapshot(root)
    shutil.rmtree(root)
    make_synthetic(root)
    assert snapshot(root) == raced


def test_every_pattern_draws_at_extreme_shapes() -> None:
    """The image is not of one colour."""
    rng = np.random.default_rng(0)
    for name in PATTERNS:
        for size in ((128, 400), (400, 128)):
            image = draw_image(name, rng, *size)
            assert (image.height, image.width) == size
            assert np.asarray(image).std() > 10


def test_colour_does_not_give_the_class_away(synthetic: Path) -> None:
    """A linear and a nearest-neighbour classifier of colour statistics are near chance (10 %)."""
    features = {}
    for split in IMAGES:
        images = scan_folder(synthetic, split)
        rows = [colour_features(images.read(i)) for i in range(0, len(images), 2)]
        features[split] = np.array(rows), images.labels[::2]
    (train_x, train_y), (val_x, val_y) = features["train"], features["val"]
    centre, spread = train_x.mean(0), train_x.std(0) + 1e-6
    train_x, val_x = (train_x - centre) / spread, (val_x - centre) / spread
    mean_only, everything = slice(0, 3), slice(None)
    for columns in (mean_only, everything):
        one_hot = np.eye(10)[train_y]
        ones = [np.column_stack([x[:, columns], np.ones(len(x))]) for x in (train_x, val_x)]
        weights = np.linalg.lstsq(ones[0], one_hot, rcond=None)[0]
        assert np.mean((ones[1] @ weights).argmax(1) == val_y) < 0.35
        distance = np.abs(val_x[:, None, columns] - train_x[None, :, columns]).sum(2)
        assert np.mean(train_y[distance.argmin(1)] == val_y) < 0.35


def colour_features(data: bytes) -> np.ndarray:
    """Mean and std of R, G, B, then a histogram of eight bins of each."""
    image = Image.open(BytesIO(data)).convert("RGB").resize((96, 96))
    pixels = np.asarray(image, np.float64).reshape(-1, 3)
    bins = [np.histogram(pixels[:, c], 8, (0, 256))[0] / len(pixels) for c in range(3)]
    return np.concatenate([pixels.mean(0), pixels.std(0), *bins])
