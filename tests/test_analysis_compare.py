"""Comparing runs: the figure, the table of keys that differ, and what is refused."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis.compare import draw, read_curves
from scripts.reproduce import main
from tests.fake_runs import make_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path, "scaled-small14-relu")
    make_run(tmp_path, "scaled-small14-prelu", "batch_size=64", "seed=3", "name=slow", seed=3)
    return tmp_path


def lines_of(figure: Figure, panel: int) -> list[list[list[float]]]:
    return [[list(xy) for xy in line.get_xydata()] for line in figure.axes[panel].get_lines()]


def test_the_figure_and_the_differing_keys(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relu = runs / "scaled-small14-relu-imagenet-seed0"
    main(["compare", str(relu), str(runs / "slow")])
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == [relu.name, "slow"]
    assert ["act.name", "relu", "prelu"] in table
    assert ["batch_size", "128", "64"] in table
    assert ["seed", "0", "3"] in table
    keys = [row[0] for row in table[1:-1]]
    assert not {"name", "model.name", "init.rule"} & set(keys)
    with Image.open(runs / "comparison.png") as picture:
        assert min(picture.size) > 300


def test_curves_are_those_of_the_files_over_images(runs: Path) -> None:
    folders = [runs / "scaled-small14-relu-imagenet-seed0", runs / "slow"]
    figure = draw([read_curves(folder, folder.name) for folder in folders])
    lines = [json.loads(text) for text in (runs / "slow" / "metrics.jsonl").open()]
    val = [[line["step"] * 64, line["top1_error"]] for line in lines if line["kind"] == "val"]
    assert lines_of(figure, 1)[1] == val
    loss = [[line["step"] * 64, line["loss"]] for line in lines if line["kind"] == "train"]
    assert lines_of(figure, 0)[1] == loss
    assert {y for _, y in lines_of(figure, 2)[0]} == {0.01}


def test_folders_without_a_run_are_refused(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "empty").mkdir()
    begun = make_run(runs, "scaled-small14-relu", done=0, seed=1)
    slow = runs / "slow"
    for other, sentence in {
        runs / "nowhere": "there is no folder",
        runs / "empty": "is no run of train.py",
        begun: "has no line of training yet",
        slow: "two or more different runs",
    }.items():
        with pytest.raises(SystemExit) as left:
            main(["compare", str(slow), str(other)])
        assert left.value.code == 1
        assert sentence in capsys.readouterr().err
    assert not (runs / "comparison.png").exists()
