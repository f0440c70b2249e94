"""The real eval.py on images without labels: the test set and the user's own pictures."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.predictions import load_predictions
from tests.closed import refusal, skip_unbound
from tests.conftest import TINY, run_program
from tests.tars import DEVKIT, TEST, Official, extract, unpack, write_official


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Official:
    return write_official(tmp_path_factory.mktemp("official") / "tars")


@pytest.fixture(scope="module")
def trained(official: Official, runs: Path) -> str:
    """A network for the 20 classes of the tars, with probabilities far from equal."""
    data = ["data=folder", f"data.root={official.root}", f"runs={runs}", "name=on-tars"]
    run_program("train.py", *TINY, *data, "max_steps=2")
    path = runs / "on-tars" / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    state["network"]["head.fc3.weight"].normal_(0, 1, generator=torch.Generator().manual_seed(0))
    torch.save(state, path)
    return str(path)


def lines_of(scores: np.ndarray, official: Official) -> list[list[int]]:
    """The ids that a submission must list, looked up by the names of classes."""
    lines = []
    for row in scores.tolist():
        best = sorted(range(len(row)), key=lambda label: (-row[label], label))[:5]
        lines.append([official.wnids.index(official.classes[label]) + 1 for label in best])
    return lines


def test_a_submission_has_five_ids_for_each_test_image_in_order(
    trained: str, official: Official, tmp_path: Path
) -> None:
    """With the test images in their tar and in a folder."""
    (tmp_path / "folders" / "test").mkdir(parents=True)
    extract(official.root / TEST, tmp_path / "folders")
    os.link(official.root / DEVKIT, tmp_path / "folders" / DEVKIT)
    written = []
    for root in (official.root, tmp_path / "folders"):
        out, saved = tmp_path / "submission.json", tmp_path / "scores.npz"
        arguments = [f"checkpoint={trained}", "split=test", f"data.root={root}", "views=ten"]
        run_program("eval.py", *arguments, f"out={out}", f"save_predictions={saved}")
        rows = (tmp_path / "submission.txt").read_text().splitlines()
        written.append([[int(number) for number in row.split(" ")] for row in rows])
        assert len(rows) == len(official.test) == json.loads(out.read_text())["images"]
        scores = load_predictions(saved).scores
        # Saved in half precision: order may change where probabilities are that close.
        gaps = -np.diff(np.sort(np.log(scores + 1e-9))[:, ::-1])[:, :5]
        clear = gaps.min(axis=1) > 1e-3
        expected = lines_of(scores, official)
        assert clear.any()
        assert all(written[-1][i] == expected[i] for i in range(len(expected)) if clear[i])
    assert written[0] == written[1]


def test_a_submission_needs_the_devkit(trained: str, official: Official, tmp_path: Path) -> None:
    """It is missed before any image is read."""
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.JPEG").write_bytes(b"no image")
    arguments = ["eval.py", f"checkpoint={trained}", "split=test", f"data.root={tmp_path}"]
    done = run_program(*arguments, f"out={tmp_path / 'a.json'}", check=False)
    assert done.returncode == 1
    assert f"{tmp_path} does not have {DEVKIT}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "a.json").exists()
    assert not (tmp_path / "a.txt").exists()


def test_saved_predictions_make_a_submission(
    trained: str, official: Official, tmp_path: Path
) -> None:
    """So networks of an ensemble can be tested one at a time (Table 7)."""
    saved, val = tmp_path / "a.npz", tmp_path / "val.npz"
    common = ["eval.py", f"checkpoint={trained}"]
    run_program(*common, "split=test", f"out={tmp_path / 'a.json'}", f"save_predictions={saved}")
    run_program(*common, f"out={tmp_path / 'val.json'}", f"save_predictions={val}")
    again = ["eval.py", f"checkpoint={saved}", "split=test", f"out={tmp_path / 'b.json'}"]
    run_program(*again, f"data.root={official.root}")
    rows = [(tmp_path / f"{name}.txt").read_text().splitlines() for name in "ab"]
    assert len(rows[0]) == len(rows[1]) == len(official.test)
    assert [set(row.split()) for row in rows[0]] == [set(row.split()) for row in rows[1]]
    others = ["eval.py", f"checkpoint={val}", "split=test", f"data.root={official.root}"]
    for command, sentence in (
        (again, "type data.root="),
        (others, "val.npz holds predictions of other images"),
    ):
        done = run_program(*command, f"out={tmp_path / 'c.json'}", check=False)
        assert done.returncode == 1
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_pictures_are_classified_like_the_same_images_in_the_data_set(
    trained: str, official: Official, tmp_path: Path
) -> None:
    folder = unpack(official, tmp_path / "folders") / "val"
    name = official.classes[3]
    pictures = sorted((folder / name).iterdir())
    (own := tmp_path / "my own").mkdir()
    other = own / os.fsdecode(b"pictur\xe9.png")  # of unknown class, and not UTF-8
    Image.effect_noise((90, 70), 50).save(other)
    out = tmp_path / "named.json"
    images = f"images=[{folder / name},'{own}']"
    common = [f"checkpoint={trained}", "views=centre"]
    strict = {"PYTHONIOENCODING": "utf-8:strict"}  # as most terminals; not so where LANG is C
    done = run_program("eval.py", *common, images, f"out={out}", **strict)
    rows = json.loads(out.read_text())["pictures"]
    assert [row["image"] for row in rows] == [*map(str, pictures), str(other)]
    assert [row["truth"] for row in rows] == [name, name, None]
    assert rows[0]["truth_words"].startswith(f"{name} fish, Piscis")
    assert rows[0]["truth_words"] in done.stdout
    saved = tmp_path / "all.npz"
    run_program("eval.py", *common, f"out={tmp_path / 'all.json'}", f"save_predictions={saved}")
    scores = load_predictions(saved).scores[6:8]  # two images a class, in order of class
    for row, expected in zip(rows, scores, strict=False):
        assert row["probabilities"] == pytest.approx(np.sort(expected)[::-1][:5], rel=2e-3)
        assert row["classes"][0] == official.classes[int(expected.argmax())]
    with Image.open(tmp_path / "named.png") as figure:
        assert figure.width > 600
        assert np.asarray(figure.convert("L")).std() > 10


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("images=/nowhere/a.jpg", "images=/nowhere/a.jpg is not an image file"),
        ("images=[]", "images=[] names no image"),
        ("split=train", "split=train is unknown"),
    ],
)
def test_refusals(trained: str, argument: str, sentence: str) -> None:
    done = run_program("eval.py", f"checkpoint={trained}", argument, check=False)
    assert done.returncode == 1
    assert sentence in done.stderr


def test_an_unreadable_folder_of_pictures_is_refused(trained: str, tmp_path: Path) -> None:
    skip_unbound()
    (tmp_path / "closed").mkdir(mode=0o000)
    sentence = refusal("eval.py", f"checkpoint={trained}", f"images={tmp_path / 'closed'}")
    assert f"cannot read images={tmp_path / 'closed'} " in sentence
    assert "Permission denied" in sentence
