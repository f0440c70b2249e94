"""Any number of processes, and any gradient accumulation, computes the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import TrainConfig
from data.loading import Batch, training_stream
from data.sources.index import ImageIndex, scan_folder
from engine.distributed import World
from evaluation.predictions import load_predictions
from models.network import build_network
from tests.conftest import ROOT, TINY, composed, free_port, metrics, run_program, torchrun

STEPS = 14  # more than an epoch of 200 images in batches of 16


@pytest.fixture(scope="module")
def one(fifty: list[str], runs: Path) -> Path:
    run_program(*fifty, "name=one")
    return runs / "one"


def assert_same_course(folder: Path, one: Path) -> None:
    """The losses of all steps to 1e-4; in every validation 50 images and equal errors."""
    lines, expected = metrics(folder), metrics(one)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 51))
    for line, other in zip(lines, expected, strict=True):
        place = ("kind", "step", "epoch")
        assert [line.get(key) for key in place] == [other.get(key) for key in place]
        if line["kind"] == "gradients":
            # Coarser: rounding may move the maximum of a pool, and with it part of a gradient.
            assert line["norms"] == pytest.approx(other["norms"], rel=5e-2), line["step"]
        elif line["kind"] == "train":
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-4), line["step"]
        elif line["kind"] == "slopes":
            for layer, slopes in line["layers"].items():
                assert slopes["mean"] == pytest.approx(other["layers"][layer]["mean"], abs=1e-4)
        else:
            assert line["images"] == other["images"] == 50
            assert line["top1_error"] == other["top1_error"]
            assert line["top5_error"] == other["top5_error"]


def test_two_processes(two: Path, one: Path) -> None:
    assert_same_course(two, one)


def test_accumulation(fifty: list[str], runs: Path, one: Path) -> None:
    run_program(*fifty, "name=accumulated", "micro_batch=4")
    assert_same_course(runs / "accumulated", one)


def test_accumulation_in_four_processes(fifty: list[str], runs: Path, one: Path) -> None:
    torchrun(4, *fifty, "name=four-accumulated", "micro_batch=2")
    assert_same_course(runs / "four-accumulated", one)


def test_two_nodes(fifty: list[str], runs: Path, two: Path) -> None:
    """Two launchers with a process each, joined by c10d: exactly as two processes of one node."""
    endpoint = f"127.0.0.1:{free_port()}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                *(f"--node-rank={node}", "--nproc-per-node=1", "--local-addr=127.0.0.1"),
                *("--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=7"),
                *(*fifty, "name=nodes", "max_steps=12"),
            ],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    output = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], output
    lines = [line for line in metrics(runs / "nodes") if line["kind"] in ("train", "gradients")]
    assert lines == metrics(two)[:24]
    assert metrics(runs / "nodes")[-1]["images"] == 50


@pytest.fixture(scope="module")
def index(small: Path) -> ImageIndex:
    return scan_folder(small, "train")


def batches(config: TrainConfig, index: ImageIndex, rank: int, size: int) -> list[Batch]:
    """What process `rank` of `size` trains on."""
    share = World(rank, size, torch.device("cpu")).share(config.batch_size)
    return list(training_stream(config, index, share, 0, STEPS, pytest.fail))


@pytest.mark.parametrize("loader", ["dali", "torchvision"])
@pytest.mark.parametrize("size", [2, 4])
def test_images_augmentation_and_masks_are_those_of_one_process(
    index: ImageIndex, small: Path, loader: str, size: int
) -> None:
    data = [f"loader={loader}", "loader.workers=1", "data=folder", f"data.root={small}"]
    config = composed(*TINY, *data)
    network = build_network(config.model, config.act, config.init, 10, dropout=0.5, seed=0)
    whole = batches(config, index, 0, 1)
    shares = [batches(config, index, rank, size) for rank in range(size)]
    assert len(whole) == STEPS
    assert {len(batch.labels) for batch in shares[0]} == {16 // size}
    for batch, *parts in zip(whole, *shares, strict=True):
        for name in ("images", "labels", "colours", "keys", "indices"):
            together = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(together, getattr(batch, name)), name
        for drop in (network.head.drop1, network.head.drop2):
            ones = torch.ones(16 // size, len(drop.units))
            masks = [drop(ones, part.keys) for part in parts]
            assert torch.equal(torch.cat(masks), drop(torch.ones(16, ones.shape[1]), batch.keys))
            assert 0.4 < torch.cat(masks).count_nonzero() / (16 * ones.shape[1]) < 0.6


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Path:
    """2,050 validation images, of which 50 are different: a part for each of three processes."""
    root = tmp_path_factory.mktemp("many")
    for folder in (small / "val").iterdir():
        (root / "val" / folder.name).mkdir(parents=True)
        images = sorted(folder.iterdir())
        for number in range(205):
            os.link(images[number % 5], root / "val" / folder.name / f"{number:03d}.JPEG")
    return root


def test_eval_by_three_processes(one: Path, many: Path, tmp_path: Path) -> None:
    """Compared with one process on the 50 different images; image n of a class is its n % 5."""
    best = f"checkpoint={one / 'checkpoints' / 'best.pt'}"

    def arguments(name: str) -> list[str]:
        out = [f"out={tmp_path}/{name}.json", f"save_predictions={tmp_path}/{name}.npz"]
        return ["eval.py", best, "scales=[64]", "batch_size=32", *out]

    run_program(*arguments("alone"))
    torchrun(3, *arguments("three"), f"data.root={many}")
    alone, three = (load_predictions(tmp_path / f"{name}.npz") for name in ("alone", "three"))
    place = np.arange(2050) // 205 * 5 + np.arange(2050) % 205 % 5
    np.testing.assert_array_equal(three.labels, alone.labels[place])
    np.testing.assert_allclose(three.scores, alone.scores[place], atol=1e-3)  # float16's last bit
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "three")]
    assert [result["images"] for result in results] == [50, 2050]
    for error in ("top1_error", "top5_error"):
        assert results[1]["combined"][error] == results[0]["combined"][error]
