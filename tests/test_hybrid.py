"""parallel=hybrid: real processes, compared with one process that has the whole batch."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY, checkpoint, metrics, run_program, torchrun

from configs.schema import TrainConfig
from configs.store import compose_config
from models.describe import costs, describe


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [(2, ["act=prelu"]), (4, ["act=prelu_shared", "micro_batch=2"])],
)
def test_a_step_has_the_gradients_of_the_whole_batch(processes: int, overrides: list[str]) -> None:
    """Also their norms, what a checkpoint holds, and the costs that describe.py states."""
    arguments = [*TINY, "model.fc=[64,32]", *overrides]
    config = compose_config(arguments, TrainConfig)
    network = describe(config.model, config.act, config.init, 10, config.data.crop)
    expected = {c.parallel: c for c in costs(network, processes, config.batch_size, "fp32")}
    done = torchrun(processes, "tests/hybrid_processes.py", *arguments)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[{")]
    assert len(lines) == 2
    parameters = network.parameters + network.slopes
    for layout in lines:
        for process in layout:
            assert process["worst_gradient"] < 1e-4, process
            assert process["worst_norm"] < 1e-4, process
            assert process["norm_error"] < 1e-4, process
            assert process["momentum"] == (parameters if process["rank"] == 0 else 0)
            assert process["same_network"]
            assert process["fc3_bias"] == layout[0]["fc3_bias"]  # replicas, equal to the bit
            cost = expected[process["parallel"]]
            # The shared slopes of fc1 and fc2 each have an all-reduce in each micro-batch.
            assert process["sent"] == pytest.approx(cost.bytes_sent, abs=64)
            assert process["kept"] == cost.bytes_kept
    assert lines[0][0]["loss"] == pytest.approx(lines[1][0]["loss"], rel=1e-6)
    kept = [layout[0]["kept"] for layout in lines]
    assert kept[1] < kept[0]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder) if line["kind"] == "train"]


@pytest.fixture(scope="module")
def few(command: list[str]) -> list[str]:
    """15 of the 25 steps, at the paper's rate, each with its loss."""
    return [*command, "log_every=1", "max_steps=15", "act=prelu"]


@pytest.mark.slow
def test_losses_are_those_of_ddp_and_of_one_process(few: list[str], runs: Path) -> None:
    run_program(*few, "name=hybrid-one")
    torchrun(2, *few, "name=hybrid-ddp")
    torchrun(2, *few, "name=hybrid-two", "parallel=hybrid")
    torchrun(4, *few, "name=hybrid-four", "parallel=hybrid", "micro_batch=2")
    truth = losses(runs / "hybrid-one")
    assert len(truth) == 15
    for name in ("hybrid-ddp", "hybrid-two", "hybrid-four"):
        assert losses(runs / name) == pytest.approx(truth, rel=1e-4)
        val = [line for line in metrics(runs / name) if line["kind"] == "val"]
        assert [line["images"] for line in val] == [50, 50]
    assert_same_weights(runs / "hybrid-two", runs / "hybrid-one", 1e-3)


@pytest.mark.slow
def test_checkpoints_go_from_any_layout_to_any_other(few: list[str], runs: Path) -> None:
    """Hybrid on 2, one process, hybrid on 4, ddp on 2: one run."""
    here = [*few, "name=hybrid-wanders", "checkpoint.every_steps=0"]
    torchrun(2, *here, "parallel=hybrid", "max_steps=4")
    run_program(*here, "max_steps=8")
    torchrun(4, *here, "parallel=hybrid", "max_steps=12")
    torchrun(2, *here, "max_steps=15")
    run_program(*few, "name=hybrid-stays")
    assert losses(runs / "hybrid-wanders") == pytest.approx(losses(runs / "hybrid-stays"), rel=1e-4)
    assert_same_weights(runs / "hybrid-wanders", runs / "hybrid-stays", 1e-3)


def assert_same_weights(folder: Path, expected: Path, bound: float) -> None:
    """The weights of each layer, relative to their norm; of the momentum, only the shapes."""
    ours, theirs = checkpoint(folder), checkpoint(expected)
    assert ours["network"].keys() == theirs["network"].keys()
    for name, weight in theirs["network"].items():
        difference = torch.linalg.vector_norm(ours["network"][name] - weight)
        assert difference <= bound * torch.linalg.vector_norm(weight) + 5e-7, name
    shapes, expected_shapes = (
        {i: buffer["momentum_buffer"].shape for i, buffer in saved["optimizer"]["state"].items()}
        for saved in (ours, theirs)
    )
    assert shapes == expected_shapes


def test_one_process_is_the_plain_path(few: list[str], runs: Path) -> None:
    run_program(*few, "name=hybrid-alone", "parallel=hybrid", "max_steps=3")
    run_program(*few, "name=plain-alone", "max_steps=3")
    hybrid, plain = (checkpoint(runs / name)["network"] for name in ("hybrid-alone", "plain-alone"))
    assert all(torch.equal(hybrid[name], weight) for name, weight in plain.items())


def test_widths_that_do_not_divide_are_refused(few: list[str]) -> None:
    arguments = [*few, "name=hybrid-odd", "parallel=hybrid", "model.fc=[64,63]"]
    done = torchrun(2, *arguments, check=False)
    assert done.returncode != 0
    assert "2 does not divide model.fc=[64, 63]" in done.stderr


def test_describe_prints_what_model_c_sends_and_keeps() -> None:
    done = run_program("scripts/describe.py", "model=C", "--processes", "8", "--json")
    ddp, hybrid = json.loads(done.stdout)["parallel"]
    # 330.6 M parameters and slopes in fp32: weight, gradient and momentum.
    assert ddp["bytes_kept"] == 12 * (330_603_368 + 20_576)
    # Of them 252.1 M in fc layers, an eighth of them here.
    assert hybrid["bytes_kept"] == pytest.approx(12 * (78.5e6 + 252.1e6 / 8), rel=2e-3)
    assert ddp["bytes_sent"] == pytest.approx(2 * 7 / 8 * 4 * 330.6e6, rel=1e-3)
    # 56,448 features of 128 images, as bf16 and as fp32 gradients, and the trunk's gradients.
    activations = 128 * 56_448 * (2 + 4) * 7 / 8
    assert hybrid["bytes_sent"] == pytest.approx(2 * 7 / 8 * 4 * 78.5e6 + activations, rel=1e-2)
    shown = run_program("scripts/describe.py", "model=C", "--processes", "8").stdout
    assert "parallel=hybrid" in shown
