"""eval.py refuses before it scores, keeps its scores, and leaves other evaluations' alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evaluation.evaluate
from common.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.distributed import World
from eval import evaluate
from evaluation.score_shards import own_shards
from tests.conftest import composed

ALONE = World(0, 1, torch.device("cpu"))


def run(out: Path, *overrides: str) -> None:
    """Run eval.py in this process."""
    more = ["device=cpu", "loader.device=cpu", f"out={out}"]
    evaluate(composed(*overrides, *more, program="eval"), ALONE)


@pytest.fixture(scope="module")
def best(undisturbed: Path) -> Path:
    return undisturbed / "checkpoints" / "best.pt"


def test_all_networks_are_opened_before_the_first_is_scored(
    best: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, cut, mixed = (tmp_path / name for name in ("r.json", "cut.pt", "mixed.npz"))
    cut.write_bytes(best.read_bytes()[:-100])
    run(tmp_path / "few.json", f"checkpoint={best}", "subset=2", f"save_predictions={mixed}")
    last = undisturbed / "checkpoints" / "last.pt"
    for checkpoints, options, sentence in (
        ([best, cut], [], "cut.pt is damaged"),
        ([best, tmp_path / "gone.pt"], [], "there is no checkpoint at"),
        ([best, mixed], [], "for different image lists"),
        ([best, last], ["weights=[1,2,3]"], "must be 2 numbers"),
        ([best, last], [f"save_predictions={tmp_path}/no/p.npz"], "cannot write save_predictions"),
        ([best], ["split=test", "data.on_error=skip"], "is not for split=test"),
    ):
        names = f"checkpoint=[{','.join(map(str, checkpoints))}]"
        with pytest.raises(UserError, match=sentence):
            run(out, names, *options)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "cut.pt",
            "few.json",
            mixed.name,
        ]


def test_only_the_networks_of_an_ensemble_are_loaded_twice(
    best: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[Path]()

    def load(path: Path) -> dict[str, Any]:
        read.append(path)
        return load_checkpoint(path)

    monkeypatch.setattr(evaluation.evaluate, "load_checkpoint", load)
    run(tmp_path / "one.json", f"checkpoint={best}", "subset=2")
    assert read == [best]
    last, other = undisturbed / "checkpoints" / "last.pt", tmp_path / "other.pt"
    shutil.copy(last, other)
    arguments = [f"checkpoint=[{best},{other}]", "subset=2"]
    run(tmp_path / "two.json", *arguments)
    assert read[1:] == [best, other, best, other]
    read.clear()

    def replacing(path: Path) -> dict[str, Any]:
        if read == [best, other]:  # all are open, the first is read again
            shutil.copy(best, other)
        return load(path)

    monkeypatch.setattr(evaluation.evaluate, "load_checkpoint", replacing)
    with pytest.raises(UserError, match=r"other\.pt was replaced by another"):
        run(tmp_path / "two.json", *arguments)


def test_scores_of_other_evaluations_are_left_alone(best: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "r.json", tmp_path / "r.parts"
    with own_shards(parts, ALONE), pytest.raises(UserError, match=r"another eval.py is at work in"):
        run(out, f"checkpoint={best}", "subset=2")
    assert not parts.exists()
    (parts / "other").mkdir(parents=True)
    (parts / "other" / "part-00000.npy").touch()
    run(out, f"checkpoint={best}", "subset=2")
    assert [path.name for path in parts.rglob("*")] == ["other", "part-00000.npy"]
    assert json.loads(out.read_text())["images"] == 2


def test_scores_survive_an_unreadable_image_and_a_renamed_run(
    best: Path, small: Path, tmp_path: Path
) -> None:
    shutil.copytree(small / "val", tmp_path / "data" / "val")
    (tmp_path / "old").mkdir()
    shutil.copy(best, tmp_path / "old" / "best.pt")
    images = sorted((tmp_path / "data" / "val").rglob("*.JPEG"))
    whole = images[-1].read_bytes()
    images[-1].write_bytes(b"")
    out, options = tmp_path / "r.json", ["batch_size=1", f"data.root={tmp_path / 'data'}"]
    with pytest.raises(UserError, match="cannot read image"):
        run(out, f"checkpoint={tmp_path / 'old'}/best.pt", *options)
    (kept,) = tmp_path.glob("r.parts/*/kept-00000.npz")
    with np.load(kept) as shard:
        assert shard["done"][0]
    images[-1].write_bytes(whole)
    images[0].write_bytes(b"not looked at again")
    (tmp_path / "old").rename(tmp_path / "new")
    run(out, f"checkpoint={tmp_path / 'new'}/best.pt", *options)
    assert json.loads(out.read_text())["images"] == 50
    assert not (tmp_path / "r.parts").exists()
