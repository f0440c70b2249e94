"""Figs. 4 and 5 from saved predictions, and the errors by class behind Fig. 6."""

from pathlib import Path

import numpy as np
import pytest

from analysis.report.examples import examples
from analysis.report.paper import DENSE
from analysis.report.read import collect
from analysis.report.report import write_report
from common.errors import UserError
from data.sources.index import ImageIndex, scan_folder
from evaluation.metrics import ClassSummary, per_class
from evaluation.predictions import Predictions, hash_of_images, load_predictions, save_predictions
from tests.fake_runs import make_result, make_run


@pytest.fixture
def index(small: Path) -> ImageIndex:
    return scan_folder(small, "val")


@pytest.fixture
def saved(tmp_path: Path, index: ImageIndex) -> Path:
    """Predictions that are right for the first image of each class and far off for all others."""
    scores = np.tile(np.linspace(0.01, 0.02, 10, dtype=np.float32), (50, 1))
    first = np.unique(index.labels, return_index=True)[1]
    for i, label in enumerate(index.labels):
        # Otherwise the five best are the classes that follow the true one.
        best = [label] if i in first else [(label + k) % 10 for k in range(1, 6)]
        scores[i, best] = np.linspace(0.5, 0.3, len(best))
    path = tmp_path / "runs" / "ensemble-folder" / "predictions-dense.npz"
    path.parent.mkdir(parents=True)
    images = hash_of_images(index, np.arange(50))
    save_predictions(path, Predictions(scores, index.labels, index.classes, images))
    return path


def test_examples_are_right_or_wrong_as_requested(
    saved: Path, small: Path, index: ImageIndex
) -> None:
    words = [f"word {name}" for name in index.classes]
    files = {index.read(i): int(index.labels[i]) for i in range(50)}
    for right in (True, False):
        pictures = examples(load_predictions(saved), str(small), words, right=right)
        assert len(pictures) == 10  # one of each class
        labels = [files[picture.image] for picture in pictures]
        assert len(set(labels)) == 10
        for picture, label in zip(pictures, labels, strict=True):
            assert picture.truth == words[label]
            names = [name for name, _ in picture.predictions]
            expected = [words[(label + k) % 10] for k in range(1, 6)]
            assert names[0] == picture.truth if right else names == expected
            assert picture.predictions[0][1] == pytest.approx(0.5, abs=1e-3)


def test_predictions_of_other_images_are_refused(
    saved: Path, synthetic: Path, tmp_path: Path, index: ImageIndex
) -> None:
    with pytest.raises(UserError, match="not of the validation images"):
        examples(load_predictions(saved), str(synthetic), index.classes, right=True)
    (tmp_path / "odd.npz").write_bytes(b"odd")
    with pytest.raises(UserError, match="damaged or holds no predictions"):
        load_predictions(tmp_path / "odd.npz")


def test_figures_4_and_5_are_in_the_report(saved: Path, small: Path, tmp_path: Path) -> None:
    runs, results = saved.parent.parent, tmp_path / "results"
    names = ["c-prelu-folder-seed0", *(f"b-prelu-folder-seed{s}" for s in (0, 1))]
    names += [f"a-prelu-folder-seed{s}" for s in (0, 1, 2)]
    files = [f"{name}/predictions-dense.npz" for name in names]
    make_run(runs, "c-prelu", "data=folder", f"data.root={small}", done=1)
    rows = [{"class": name, "words": f"{name}, of ten", "top5_error": 0} for name in "abc"]
    make_result(saved.parent, DENSE, {None: (40, 40)}, checkpoints=files, per_class=rows)
    page = write_report(collect(runs, results), results, runs).read_text()
    for name in ("fig4-folder", "fig5-folder", "fig6-folder"):
        assert f"({name}.png)" in page
        assert (results / f"{name}.png").stat().st_size > 5000
        assert (results / f"{name}.svg").exists()
    assert "(fig4.png)" not in page  # the paper's edition, of ImageNet


def test_errors_by_class_are_summarised() -> None:
    scores = np.array([[9, 1, 0, 0, 0, 0, 0]] * 3 + [[1, 2, 3, 4, 5, 6, 7]] * 3, np.float32)
    labels = np.array([0, 0, 1, 0, 6, 1])
    errors = per_class(scores, labels, list("abcdefg"), [f"{name} word" for name in "abcdefg"])
    rows = [each.as_dict() for each in errors]
    assert [(row["class"], row["images"]) for row in rows] == [("a", 3), ("b", 2), ("g", 1)]
    summary = ClassSummary.of(errors).as_dict()
    # a: two of three right, one at rank 7; b: at ranks 2 and 6; g: right.
    assert (summary["zero_top1"], summary["zero_top5"], summary["classes"]) == (1, 1, 3)
    assert [row["words"] for row in summary["worst"]] == ["b word", "a word", "g word"]
    assert [round(row["top5_error"], 1) for row in summary["worst"]] == [50.0, 33.3, 0.0]
    lines = ClassSummary.of(errors).as_text()
    assert "without a top-5 error: 1 of 3; without a top-1 error: 1" in lines
    assert lines.index("b word") < lines.index("a word")
