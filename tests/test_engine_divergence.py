"""Clipped gradients, losses that rise, and the way past a divergence."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import UserError
from configs.validate import validate
from data.loading import Batch
from engine.distributed import World
from engine.divergence import learns_nothing, refuse_other_skips, rises, way_on
from engine.optim import build_optimizer
from engine.parallel import open_parallel
from engine.precision import set_precision
from engine.step import TrainingStep
from models.network import build_network
from tests.conftest import checkpoint, composed, metrics, run_program
from tests.test_train import same_tensors


@pytest.mark.parametrize("limit", [None, 0.1, 1e6])
def test_a_gradient_is_clipped_to_the_norm_and_reported_whole(limit: float | None) -> None:
    """At rate 1 the first update is the gradient itself, for any number of micro-batches."""
    config = composed("model=small14", "model.fc=[64,64]", "weight_decay=0", "schedule.rates=[1]")
    world = World(0, 1, torch.device("cpu"))
    for micro_batch in (8, 2):
        network = build_network(config.model, config.act, config.init, 8, dropout=0, seed=1)
        before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
        step = TrainingStep(
            network,
            build_optimizer(network, config),
            torch.zeros(1, 1, 3),
            set_precision("fp32", world.device),
            micro_batch,
            gradient_norm=partial(open_parallel("ddp", world).gradient_norm, network),
            clip_norm=limit,
        )
        images = torch.randint(256, (8, 64, 64, 3), dtype=torch.uint8)
        labels = torch.arange(8)
        batch = Batch(images, labels, torch.zeros(8, 3), labels, labels, torch.zeros(8).bool())
        _, norm = step(batch)
        moved = nn.utils.parameters_to_vector(network.parameters()).detach() - before
        assert norm.item() > 0.2
        clipped = min(norm.item(), limit or math.inf)
        assert moved.double().norm().item() == pytest.approx(clipped, rel=1e-3)


def test_a_loss_far_above_its_level_is_a_rise() -> None:
    assert not rises(7.0, [])
    assert not rises(7.6, [6.84, 7.1])
    assert rises(12.4, [6.84])
    assert not rises(2.9, [1.5] * 50)
    assert rises(3.3, [1.5] * 50 + [9.0] * 20)  # earlier spikes do not move the level
    assert learns_nothing([math.log(10)] * 100, 10)
    assert not learns_nothing([2.1] * 100, 10)
    assert not learns_nothing([math.log(10)] * 99, 10)  # too early to tell


def test_the_way_on_names_the_newest_checkpoint_from_before_the_rise(tmp_path: Path) -> None:
    for name, step in (("last", 400), ("previous", 300), ("epoch-002", 250)):
        torch.save({"progress": {"step": step}}, tmp_path / f"{name}.pt")
    text = way_on(tmp_path, 431, None, [])
    assert f"last good checkpoint is {tmp_path / 'last.pt'}, of step 400" in text
    assert '"skip_steps=[[401,431]]"' in text
    assert "cp " not in text
    text = way_on(tmp_path, 431, 380, [[11, 20]])
    assert f"`cp {tmp_path / 'previous.pt'} {tmp_path / 'last.pt'}`" in text
    assert '"skip_steps=[[11,20],[301,431]]"' in text
    assert "of step 250" in way_on(tmp_path, 431, 290, [])
    assert "no checkpoint" in way_on(tmp_path, 431, 5, [])


def test_steps_that_are_done_keep_their_spans() -> None:
    refuse_other_skips(30, [[11, 20]], [[11, 20], [31, 40]])
    for old, new in (([[11, 20]], []), ([], [[11, 20]]), ([[11, 20]], [[11, 25]])):
        with pytest.raises(UserError, match="steps up to 30 are done, with skip_steps="):
            refuse_other_skips(30, old, new)


@pytest.mark.parametrize("spans", ["[[1]]", "[[5,4]]", "[[0,4]]", "[[5,9],[8,10]]"])
def test_invalid_spans_are_refused(spans: str) -> None:
    with pytest.raises(UserError, match="must list spans"):
        validate(composed(f"skip_steps={spans}"), 1)
    config = composed("skip_steps=[[2,3],[5,5]]")
    spans_of_steps = [config.skipped_span(step) for step in range(1, 7)]
    assert spans_of_steps == [None, [2, 3], [2, 3], None, [5, 5], None]


def test_a_diverged_run_goes_on_past_the_steps_that_did_it(command: list[str], runs: Path) -> None:
    """Its rate is far too large in epoch 1, so it diverges there."""
    rates = ["schedule.rule=fixed", "schedule.switch_epochs=[1]", "schedule.rates=[0.01,1e30]"]
    more = [*command, "name=diverged", *rates]
    failed = run_program(*more, check=False)
    assert failed.returncode == 1
    folder = runs / "diverged"
    last = folder / "checkpoints" / "last.pt"
    assert f"the last good checkpoint is {last}, of step 13" in failed.stderr
    assert "nan" in failed.stderr or "inf" in failed.stderr
    assert "step 14" in failed.stderr or "step 15" in failed.stderr
    state = checkpoint(folder)
    assert state["progress"]["step"] == 13
    assert all(tensor.isfinite().all() for tensor in state["network"].values())
    key = failed.stderr.split('with "')[1].split('"')[0]
    assert key in ("skip_steps=[[14,14]]", "skip_steps=[[14,15]]")
    skipped = "skip_steps=[[14,25]]"
    out = run_program(*more, skipped).stdout
    assert "resuming" in out
    state = checkpoint(folder)
    assert state["progress"]["step"] == 25
    assert state["config"]["skip_steps"] == [[14, 25]]
    events = [line["what"] for line in metrics(folder) if line["kind"] == "event"]
    assert "steps 14 to 25 are passed over without an update (skip_steps)" in events
    assert same_tensors(state["network"], checkpoint(folder, "previous.pt")["network"])
    refused = run_program(*more, check=False)
    assert refused.returncode == 1
    assert "steps up to 25 are done, with skip_steps=[[14, 25]]" in refused.stderr


def test_steps_passed_over_take_no_other_batches(command: list[str], runs: Path) -> None:
    """Before and after the span a run sees the batches that it would see without it."""
    more = [*command, "log_every=1", "max_steps=9", "schedule.rates=[1e-3,1e-4]"]
    run_program(*more, "name=whole")
    run_program(*more, "name=some", "skip_steps=[[4,6]]")
    steps = [line["step"] for line in metrics(runs / "some") if line["kind"] == "train"]
    assert steps == [1, 2, 3, 7, 8, 9]
    run_program(*more, "name=cut", "skip_steps=[[4,6]]", "max_steps=5")
    run_program(*more, "name=cut", "skip_steps=[[4,6]]")
    a, b = checkpoint(runs / "some"), checkpoint(runs / "cut")
    assert same_tensors(a["network"], b["network"])
    whole = [line for line in metrics(runs / "whole") if line["kind"] == "train"]
    some = [line for line in metrics(runs / "some") if line["kind"] == "train"]
    assert [line["loss"] for line in some[:3]] == [line["loss"] for line in whole[:3]]
    # The images are the same; the networks differ by three small updates.
    assert some[3]["loss"] == pytest.approx(whole[6]["loss"], rel=0.2)
