"""configs/experiment/: one file for each training run, with a head comment."""

import re
from pathlib import Path

import pytest

from analysis.report.paper import (
    CURVE_FIGURES,
    ENSEMBLE,
    ENSEMBLE_MEMBERS,
    ERROR_TABLES,
    SLOPE_EXPERIMENTS,
)
from configs.schema import TrainConfig
from configs.store import to_dict
from configs.validate import validate
from engine.run_folder import differences
from models.describe import describe
from tests.conftest import ROOT, composed, run_program

FOLDER = ROOT / "configs" / "experiment"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "scaled")
FULL = [name for name in FILES if not name.startswith("scaled-")]


@pytest.fixture(scope="module")
def configs() -> dict[str, TrainConfig]:
    more = ["data=folder", "data.root=somewhere"]
    return {
        name: composed(f"experiment={name}", *(more if name.startswith("scaled-") else []))
        for name in FILES
    }


def test_every_row_and_curve_has_its_file() -> None:
    wanted = {row.experiment for table in ERROR_TABLES for row in table.rows if row.experiment}
    wanted |= {name for figure in CURVE_FIGURES for _, name in figure.curves}
    wanted |= {*SLOPE_EXPERIMENTS, *(name for name, _ in ENSEMBLE_MEMBERS)}
    assert wanted - {ENSEMBLE} == set(FULL)
    assert {f"scaled-{name}" for name in FULL} == set(FILES) - set(FULL)


def test_names_and_validity(configs: dict[str, TrainConfig]) -> None:
    for name, config in configs.items():
        validate(config, 1)
        assert config.experiment == name
        assert config.name == f"{name}-{config.data.name}-seed0"


def test_head_comments_are_correct(configs: dict[str, TrainConfig]) -> None:
    for name in FULL:
        config, text = configs[name], (FOLDER / f"{name}.yaml").read_text()
        network = describe(config.model, config.act, config.init, 1000, config.data.crop)
        epochs, images, cost = re.search(  # type: ignore[union-attr]
            r"# Cost: +(\d+) epochs, ([\d,]+) images; (\S+) multiply-adds", text
        ).groups()
        assert int(epochs) == config.epochs
        assert int(images.replace(",", "")) == config.epochs * 1_281_167
        assert float(cost) == pytest.approx(network.multiply_adds, rel=1e-3)
        assert f"python train.py experiment={name} " in text
        for table in ERROR_TABLES:
            for row in table.rows:
                # Table 4's rows of single scales are not repeated.
                if row.experiment == name and row.scale is None and None not in row.paper:
                    assert f"{row.paper[0]:.2f} / {row.paper[1]:.2f}" in text


def test_table_4_differs_in_the_activation_alone(configs: dict[str, TrainConfig]) -> None:
    for pair in (("a-relu", "a-prelu"), ("scaled-a-relu", "scaled-a-prelu")):
        relu, prelu = (to_dict(configs[name]) for name in pair)
        keys = {line.partition(":")[0] for line in differences(relu, prelu)}
        assert keys == {"experiment", "act.name", "act.slope", "act.learned"}
    assert configs["a-relu"].schedule.rule == "fixed"


def test_curves_differ_in_the_initialisation_alone(configs: dict[str, TrainConfig]) -> None:
    for figure in ("fig2", "fig3", "scaled-fig2", "scaled-fig3"):
        he, xavier = (to_dict(configs[f"{figure}-{init}"]) for init in ("he", "xavier"))
        keys = {line.partition(":")[0] for line in differences(he, xavier)}
        assert keys == {"experiment", "init.name", "init.rule"}
        assert configs[f"{figure}-he"].act.name == "relu"


def test_lengths_and_scales_are_the_papers(configs: dict[str, TrainConfig]) -> None:
    for name in FULL:
        config = configs[name]
        assert config.data.scale == (256 if config.model.name.startswith("small") else [256, 512])
        assert config.batch_size == 128
    assert configs["fig3-he"].val_subset == configs["fig2-he"].val_subset == 3000
    assert configs["fig3-he"].model.name == "small30"
    assert [configs[f"b-extra{n}"].model.extra_convs for n in (0, 3, 6, 9)] == [0, 3, 6, 9]
    assert configs["small14-prelu"].epochs == 75


def test_train_py_composes_an_experiment(tmp_path: Path) -> None:
    arguments = ["train.py", "experiment=a-prelu", "seed=3", "--cfg", "job", "--resolve"]
    out = run_program(*arguments).stdout
    assert "\nname: a-prelu-imagenet-seed3\n" in out
    assert "\nname: mine\n" in run_program(*arguments[:3], "name=mine", *arguments[3:]).stdout
