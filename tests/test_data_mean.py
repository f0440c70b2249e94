"""The mean image: what is averaged, how it is kept, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from data.batch import Batch
from data.index import scan_folder
from data.mean import CHANNEL_MEAN, load_mean, mean_image, warp_mean
from scripts.compute_mean import compute_mean, save
from tests.conftest import composed, run_program

CROP, SCALE = 28, 32


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eleven small noise pictures in two classes, stored without loss."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(11):
            size = (48, 32 + 2 * i) if i % 2 else (40 + i, 36)
            pixels = rng.integers(0, 256, (*size, 3), np.uint8)
            file = tmp_path / "set" / split / f"c{i % 2}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return tmp_path / "set"


def settings(root: Path, *more: str) -> list[str]:
    return ["data=folder", f"data.root={root}", f"data.crop={CROP}", "data.scale=32", *more]


def pillow_mean(root: Path) -> np.ndarray:
    """The literal procedure: resize the whole image, cut out its centre, average."""
    crops = []
    for file in sorted((root / "train").glob("*/*.png")):
        image = Image.open(file)
        w, h = image.size
        size = (SCALE, SCALE * h // w) if w <= h else (SCALE * w // h, SCALE)
        image = image.resize(size, Image.Resampling.BILINEAR)
        x, y = (image.width - CROP + 1) // 2, (image.height - CROP + 1) // 2
        crops.append(np.asarray(image.crop((x, y, x + CROP, y + CROP)), np.float64))
    return np.mean(crops, axis=0)


@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_mean_is_that_of_the_literal_centre_crops(photos: Path, loader: str) -> None:
    config = composed(*settings(photos, f"loader={loader}", "loader.workers=1"))
    mean = compute_mean(config, scan_folder(photos, "train"))
    assert mean.shape == (CROP, CROP, 3)
    assert mean.dtype == torch.float32
    assert np.abs(mean.numpy() - pillow_mean(photos)).mean() < 0.3


def test_number_of_workers_does_not_change_the_mean(photos: Path) -> None:
    train = scan_folder(photos, "train")
    means = [
        compute_mean(composed(*settings(photos, "loader=torchvision", workers)), train)
        for workers in ("loader.workers=1", "loader.workers=2")
    ]
    assert torch.equal(*means)


def test_program_writes_what_data_mean_reads(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "mean.npy"
    arguments = settings(photos, "loader=torchvision", "loader.workers=1")
    done = run_program("scripts/compute_mean.py", *arguments, "--out", str(out))
    assert f"data.mean={out}" in done.stdout
    assert [file.name for file in out.parent.iterdir()] == ["mean.npy"]
    mean = load_mean(str(out))
    assert np.abs(mean.numpy() - pillow_mean(photos)).mean() < 0.3


def test_program_refuses_a_missing_data_set(tmp_path: Path) -> None:
    arguments = ["data=folder", f"data.root={tmp_path / 'none'}", "--out", str(tmp_path / "m.npy")]
    done = run_program("scripts/compute_mean.py", *arguments, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no data set at")
    assert not (tmp_path / "m.npy").exists()


def batch(pixels: torch.Tensor, replaced: list[bool]) -> Batch:
    count = len(replaced)
    nothing = torch.zeros(count, dtype=torch.int64)
    return Batch(pixels, nothing, torch.zeros(count, 3), nothing, nothing, torch.tensor(replaced))


def test_batching_does_not_matter_and_replacements_do_not_count() -> None:
    pixels = torch.randint(0, 256, (7, 4, 4, 3), dtype=torch.uint8)
    replaced = [place == 2 for place in range(7)]
    one = mean_image([batch(pixels, replaced)])
    cuts = [(0, 3), (3, 4), (4, 7)]
    parts = [batch(pixels[a:b], replaced[a:b]) for a, b in cuts]
    assert torch.equal(mean_image(parts), one)
    expected = pixels[[0, 1, 3, 4, 5, 6]].double().mean(0).float()
    torch.testing.assert_close(one, expected, rtol=1e-6, atol=0)


def test_no_image_is_refused() -> None:
    with pytest.raises(UserError, match="no image"):
        mean_image([])


def test_channel_mean_fits_every_size() -> None:
    mean = load_mean("channel")
    assert mean.shape == (1, 1, 3)
    assert mean.flatten().tolist() == pytest.approx(CHANNEL_MEAN)
    assert warp_mean(mean, 224, 300) is mean
    assert load_mean("channel", (1, 2, 3)).flatten().tolist() == [1, 2, 3]


def test_warp_is_bilinear() -> None:
    """A picture that is linear in x and y stays so, sampled at the new pixel centres."""

    def ramp(height: int, width: int) -> torch.Tensor:
        y, x = (torch.arange(n) + 0.5 for n in (height, width))
        plane = 100 * (y[:, None] / height) + 50 * (x[None, :] / width)
        return torch.stack([plane, 2 * plane, plane + 3], dim=2)

    mean = ramp(32, 32)
    assert warp_mean(mean, 32, 32) is mean
    inner = slice(2, -2)  # beyond the outermost pixel centres the border is repeated
    for size in ((48, 64), (32, 50), (33, 32)):
        torch.testing.assert_close(warp_mean(mean, *size)[inner, inner], ramp(*size)[inner, inner])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, "no mean image at"),
        (b"text", r"not a \.npy file"),
        (np.zeros((3, 8, 8), np.float32), "shape 3 x 8 x 8 instead of S x S x 3"),
        (np.zeros((8, 9, 3), np.float32), "shape 8 x 9 x 3"),
        (np.full((8, 8, 3), np.nan, np.float32), "outside the grey levels"),
        (np.full((8, 8, 3), 300.0), "outside the grey levels"),
    ],
)
def test_files_that_are_no_mean_are_refused(tmp_path: Path, array: object, message: str) -> None:
    file = tmp_path / "mean.npy"
    if isinstance(array, bytes):
        file.write_bytes(array)
    elif isinstance(array, np.ndarray):
        np.save(file, array)
    with pytest.raises(UserError, match=message):
        load_mean(str(file))


def test_save_is_atomic_and_says_why_it_cannot(tmp_path: Path) -> None:
    save(torch.full((2, 2, 3), 7.0), tmp_path / "m.npy")
    assert load_mean(str(tmp_path / "m.npy")).tolist() == [[[7.0] * 3] * 2] * 2
    with pytest.raises(UserError, match="cannot write"):
        save(torch.zeros(2, 2, 3), tmp_path / "m.npy" / "below.npy")
    assert [file.name for file in tmp_path.iterdir()] == ["m.npy"]
