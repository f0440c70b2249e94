"""The real eval.py: what it writes, how it resumes, how it combines networks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from evaluation.predictions import load_predictions
from tests.conftest import ROOT, free_port, metrics, run_program


@pytest.mark.parametrize("views", ["centre", "ten"])
def test_the_result_file_has_the_documented_keys(undisturbed: Path, views: str) -> None:
    path = undisturbed / "checkpoints" / "best.pt"
    out = run_program("eval.py", f"checkpoint={path}", f"views={views}", "scales=[73,96]").stdout
    result = json.loads((undisturbed / f"result-best-{views}-73-96.json").read_text())
    assert result["views"] == views
    assert [row["scale"] for row in result["scales"]] == [73, 96]
    assert result["images"] == 50
    assert result["checkpoints"] == [str(path)]
    for row in [*result["scales"], result["combined"]]:
        assert 0 <= row["top5_error"] <= row["top1_error"] <= 100
    assert f"{result['combined']['top1_error']:.2f}" in out
    assert "chance" in out
    if views == "centre":  # as validation measured it
        errors = [line["top1_error"] for line in metrics(undisturbed) if line["kind"] == "val"]
        assert abs(result["scales"][0]["top1_error"] - min(errors)) <= 4


@pytest.fixture(scope="module")
def best(undisturbed: Path) -> str:
    return str(undisturbed / "checkpoints" / "best.pt")


@pytest.fixture(scope="module")
def relu(command: list[str], runs: Path) -> str:
    """A second network, with another activation."""
    run_program(*command, "name=relu", "act=relu", "max_steps=5")
    return str(runs / "relu" / "checkpoints" / "best.pt")


def predicted(path: Path, *arguments: str, launch: tuple[str, ...] = ()) -> np.ndarray:
    """The probabilities that eval.py saves with these arguments, float16."""
    more = [f"save_predictions={path}", f"out={path.with_suffix('.json')}"]
    run_program(*launch, "eval.py", *arguments, *more)
    return load_predictions(path).scores


def test_predictions_do_not_depend_on_batch_workers_loader_or_processes(
    best: str, tmp_path: Path
) -> None:
    arguments = [f"checkpoint={best}", "views=dense", "scales=[72,90]"]
    base = predicted(tmp_path / "a.npz", *arguments, "batch_size=1", "loader.workers=1")
    more = predicted(tmp_path / "b.npz", *arguments, "batch_size=8", "loader.workers=2")
    np.testing.assert_allclose(more, base, atol=1e-3)  # the last bit of float16
    assert (more.argmax(1) == base.argmax(1)).all()
    pillow = predicted(tmp_path / "c.npz", *arguments, "loader=torchvision")
    np.testing.assert_allclose(pillow, base, atol=0.02)
    port = f"--master-port={free_port()}"
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", port)
    two = predicted(tmp_path / "d.npz", *arguments, launch=launch)
    np.testing.assert_allclose(two, base, atol=1e-3)


def test_a_killed_evaluation_resumes(best: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["eval.py", f"checkpoint={best}", "views=dense", "scales=[72,224]", f"out={out}"]
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, start_new_session=True)
    while process.poll() is None and not list(tmp_path.glob("result.parts/*/part-00000.npy")):
        time.sleep(0.001)
    assert process.poll() is None, "the evaluation ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (first,) = tmp_path.glob("result.parts/*/part-00000.npy")
    written = first.stat().st_mtime_ns
    copy = tmp_path / "kept.npy"
    os.link(first, copy)
    run_program(*arguments)
    assert copy.stat().st_mtime_ns == written  # read, not made again
    assert not (tmp_path / "result.parts").exists()
    undisturbed = tmp_path / "undisturbed.json"
    run_program(*arguments[:-1], f"out={undisturbed}")
    kept, fresh = (json.loads(path.read_text()) for path in (out, undisturbed))
    assert kept["scales"] == fresh["scales"]
    assert kept["combined"] == fresh["combined"]


def test_ensembles_of_networks_and_of_saved_predictions_agree(
    best: str, relu: str, tmp_path: Path
) -> None:
    one = predicted(tmp_path / "one.npz", f"checkpoint={best}", "views=ten")
    two = predicted(tmp_path / "two.npz", f"checkpoint={relu}", "views=ten")
    files = f"checkpoint=[{tmp_path}/one.npz,{tmp_path}/two.npz]"
    saved = predicted(tmp_path / "saved.npz", files, "weights=[3,1]")
    np.testing.assert_allclose(saved, (3 * one + two) / 4, atol=1e-3)
    together = f"checkpoint=[{best},{relu}]"
    both = predicted(tmp_path / "both.npz", together, "weights=[3,1]", "views=ten")
    np.testing.assert_allclose(both, saved, atol=1e-3)
    result = json.loads((tmp_path / "both.json").read_text())
    assert result["checkpoints"] == [best, relu]
    assert len(result["scales"]) == 1


def test_predictions_for_different_images_are_refused(best: str, tmp_path: Path) -> None:
    predicted(tmp_path / "all.npz", f"checkpoint={best}")
    predicted(tmp_path / "some.npz", f"checkpoint={best}", "subset=20")
    files = f"checkpoint=[{tmp_path}/all.npz,{tmp_path}/some.npz]"
    done = run_program("eval.py", files, check=False)
    assert done.returncode == 1
    assert "different image lists" in done.stderr


def test_a_class_without_images_is_reported(best: str, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "val", tmp_path / "val")
    gone = sorted((tmp_path / "val").iterdir())[3]
    shutil.rmtree(gone)
    arguments = [f"checkpoint={best}", f"data.root={tmp_path}", f"out={tmp_path}/r.json"]
    done = run_program("eval.py", *arguments)
    assert f"val has no image of 1 of 10 classes, such as {gone.name}: errors" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["images"] == 45
    assert gone.name not in {each["class"] for each in result["per_class"]}


def test_an_unreadable_image_is_reported_or_skipped(best: str, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small / "val", tmp_path / "val")
    bad = sorted((tmp_path / "val").rglob("*.JPEG"))[7]
    bad.write_bytes(b"")
    arguments = ["eval.py", f"checkpoint={best}", f"data.root={tmp_path}", f"out={tmp_path}/r.json"]
    done = run_program(*arguments, check=False)
    assert done.returncode == 1
    assert str(bad) in done.stderr
    assert not (tmp_path / "r.json").exists()
    run_program(*arguments, "data.on_error=skip")
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 49


def test_sparse_and_grid_run(best: str, tmp_path: Path) -> None:
    for views in ("sparse", "grid"):
        arguments = [f"checkpoint={best}", f"views={views}", "subset=6"]
        scores = predicted(tmp_path / f"{views}.npz", *arguments)
        np.testing.assert_allclose(scores.sum(1), 1, atol=0.01)
    result = json.loads((tmp_path / "sparse.json").read_text())
    assert [row["scale"] for row in result["scales"]] == [64, 73, 86, 103, 128, 160]
