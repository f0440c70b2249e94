"""prepare_imagenet.py mean: the mean of either layout, by any number of processes."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.draws import COLOUR_VECTORS
from data.normalise import load_mean
from data.prepare.mean_image import statistics
from data.sources.index import scan_folder
from tests.preparing import prepare, refused
from tests.tars import TRAIN, Official, nested, unpack, write_official

CROP, SCALE = 28, 32


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return write_official(tmp_path / "official")


def literal_crops(official: Official) -> np.ndarray:
    """Resize the whole image, cut out its centre: [N, CROP, CROP, 3]."""
    crops = []
    for files in official.train.values():
        for data in files.values():
            image = Image.open(io.BytesIO(data))
            w, h = image.size
            size = (SCALE, SCALE * h // w) if w <= h else (SCALE * w // h, SCALE)
            image = image.resize(size, Image.Resampling.BILINEAR)
            x, y = (image.width - CROP + 1) // 2, (image.height - CROP + 1) // 2
            crops.append(np.asarray(image.crop((x, y, x + CROP, y + CROP)), np.float64))
    return np.array(crops)


def test_literal_mean_and_covariance(official: Official, tmp_path: Path) -> None:
    out = tmp_path / "new" / "mean.npy"
    done = prepare("mean", official.root, "--crop", CROP, "--out", out, "--workers", 2)
    assert f"79 images: to use the mean image, type data.mean={out}" in done.stdout
    assert sorted(file.name for file in out.parent.iterdir()) == ["mean.json", "mean.npy"]
    crops = literal_crops(official)
    mean = load_mean(str(out)).numpy()
    assert mean.shape == (CROP, CROP, 3)
    assert np.abs(mean - crops.mean(0)).mean() < 0.05
    facts = json.loads(out.with_suffix(".json").read_text())
    assert (facts["num_images"], facts["crop"], facts["scale"]) == (79, CROP, SCALE)
    assert facts["data_set"] == scan_folder(official.root, "train").fingerprint()
    colours = crops.reshape(-1, 3)
    np.testing.assert_allclose(facts["channel_mean"], colours.mean(0), atol=0.05)
    covariance = np.cov(colours, rowvar=False)
    np.testing.assert_allclose(facts["covariance"], covariance, rtol=0.005, atol=5)
    values, vectors = np.array(facts["eigenvalues"]), np.array(facts["eigenvectors"])
    assert values[0] > values[1] > values[2] > 0
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, facts["covariance"])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
    assert ((vectors * COLOUR_VECTORS).sum(0) >= 0).all()
    # The usual values of [16]: of colours in 0..1, times 255.
    eigenvalues = np.linalg.eigvalsh(np.cov(colours / 255, rowvar=False))[::-1]
    np.testing.assert_allclose(facts["colour_values"], 255 * eigenvalues, rtol=0.01)
    row = next(line for line in done.stdout.splitlines() if "divided by 255" in line)
    np.testing.assert_allclose(list(map(float, row.split()[3:])), facts["colour_values"], atol=1e-4)
    assert re.search(r"COLOUR_VALUES \(\[16\]\) +55.4600 +4.7940 +1.1480\n", done.stdout)


def test_any_layout_and_number_of_processes(official: Official, tmp_path: Path) -> None:
    folder = unpack(official, tmp_path / "folder")
    results = [
        statistics(scan_folder(root, "train"), crop=CROP, scale=SCALE, num_workers=n, skip=False)
        for root, n in ((official.root, 1), (official.root, 3), (folder, 2))
    ]
    for other in results[1:]:
        assert np.array_equal(other.mean, results[0].mean)
        assert np.array_equal(other.covariance, results[0].covariance)
        assert other.num_images == results[0].num_images == 79


def test_nothing_is_overwritten(official: Official, tmp_path: Path) -> None:
    out = tmp_path / "mean.npy"
    out.with_suffix(".json").write_text("mine")
    arguments = ["mean", official.root, "--crop", CROP, "--out", out]
    sentence = refused(*arguments).stderr
    assert f"{tmp_path}/mean.json is there already: give --force" in sentence
    assert not out.exists()
    prepare(*arguments, "--force")
    assert load_mean(str(out)).shape == (CROP, CROP, 3)
    assert json.loads(out.with_suffix(".json").read_text())["num_images"] == 79


def test_unreadable_images(official: Official, tmp_path: Path) -> None:
    first = official.classes[0]
    name = min(official.train[first])
    official.train[first][name] = official.train[first][name][:200]
    (official.root / TRAIN).write_bytes(nested(official.train))
    out = tmp_path / "mean.npy"
    arguments = ["mean", official.root, "--crop", CROP, "--out", out]
    path = f"{official.root}/{TRAIN}:{first}/{name}"
    sentence = refused(*arguments).stderr
    assert f"cannot read image {path} (" in sentence
    assert "--skip" in sentence
    done = prepare(*arguments, "--skip")
    assert f"left out: {path}" in done.stdout
    del official.train[first][name]
    mean = load_mean(str(out)).numpy()
    assert np.abs(mean - literal_crops(official).mean(0)).mean() < 0.05
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["num_images"] == 78
    assert facts["unreadable"][0].startswith(path)


def test_refused(official: Official, tmp_path: Path) -> None:
    below = tmp_path / "file" / "mean.npy"
    (tmp_path / "file").write_bytes(b"a file")
    assert "cannot write" in refused("mean", official.root, "--crop", 28, "--out", below).stderr
    assert "no data set at" in refused("mean", tmp_path / "nowhere").stderr
    sentence = refused("mean", official.root, "--scale", 100).stderr
    assert "--scale 100 is smaller than --crop 224" in sentence
