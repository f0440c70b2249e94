"""The update rule, the learning rate and the refusals, each against its definition."""

import platform
from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import UserError
from configs.schema import ScheduleConfig
from configs.validate import validate
from engine.distributed import World
from engine.optim import build_optimizer, learning_rate, set_learning_rate
from engine.parallel import load_whole_state, open_parallel, whole_state
from engine.precision import Precision
from models.network import build_network
from tests.conftest import composed


def test_sgd_is_eq_4_and_a_switch_of_the_rate_scales_the_velocity() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 2)).double()
    layers.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(layers, composed("schedule.rates=[0.1]", "weight_decay=0.01"))
    expected = {n: p.detach().clone() for n, p in layers.named_parameters()}
    velocity = {n: torch.zeros_like(p) for n, p in expected.items()}
    for step in range(8):
        rate = 0.1 if step < 4 else 0.01
        set_learning_rate(optimizer, rate)
        if step == 4:
            velocity = {name: value / 10 for name, value in velocity.items()}
        x = torch.randn(5, 3, 5, 5, dtype=torch.double)
        optimizer.zero_grad()
        layers(x).square().sum().backward()
        for name, parameter in layers.named_parameters():
            assert parameter.grad is not None
            decay = 0.01 * expected[name] if name.endswith("weight") else 0
            velocity[name] = 0.9 * velocity[name] - rate * (parameter.grad + decay)
            expected[name] = expected[name] + velocity[name]
        optimizer.step()
        for name, parameter in layers.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name])


@pytest.mark.parametrize("momentum", [0.9, 0])
def test_sgd_is_that_of_torch_bit_for_bit(momentum: float) -> None:
    config = composed("model=small14", "model.fc=[8,8]", f"momentum={momentum}")
    ours, theirs = (
        build_network(config.model, config.act, config.init, 10).to(
            memory_format=torch.channels_last
        )
        for _ in range(2)
    )
    optimizer = build_optimizer(ours, config)
    kinds = [[p for n, p in theirs.named_parameters() if (p.ndim > 1) == decay] for decay in (1, 0)]
    groups = [{"params": kinds[0], "weight_decay": config.weight_decay}, {"params": kinds[1]}]
    reference = torch.optim.SGD(groups, lr=1e-2, momentum=momentum, fused=True)
    for rate in (1e-2, 1e-2, 1e-3):
        set_learning_rate(optimizer, rate)
        for group in reference.param_groups:
            group["lr"] = rate
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        optimizer.step()
        reference.step()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other CPUs have other flags")
def test_bf16_is_emulated_where_there_is_no_avx_512() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    assert Precision("bf16", torch.device("cpu")).is_emulated == ("avx512bw" not in flags)
    assert not Precision("fp32", torch.device("cpu")).is_emulated


def test_loaded_momentum_has_the_strides_of_its_parameter() -> None:
    """With other strides, it would be added to the wrong weights."""
    config = composed("model=small14", "model.fc=[8,8]")
    replicas = open_parallel("ddp", World(0, 1, torch.device("cpu")))
    networks = [build_network(config.model, config.act, config.init, 10) for _ in range(2)]
    optimizers = [
        build_optimizer(n.to(memory_format=torch.channels_last), config) for n in networks
    ]
    for parameter in networks[0].parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers[0].step()
    weights, state = whole_state(replicas, networks[0], optimizers[0])
    for buffers in state["state"].values():
        buffers["momentum_buffer"] = buffers["momentum_buffer"].contiguous()
    saved = {"network": weights, "optimizer": state}
    load_whole_state(replicas, networks[1], optimizers[1], saved)
    for own, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        other.grad = own.grad
    for optimizer in optimizers:
        optimizer.step()
    for own, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(own, other)


def test_only_weights_decay() -> None:
    config = composed("model=small14", "model.fc=[8,8]")
    network = build_network(config.model, config.act, config.init, 10)
    optimizer = build_optimizer(network, config)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    everything = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(everything) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1), name


def test_plateau_switches_after_patience_epochs_without_improvement() -> None:
    schedule = ScheduleConfig(patience=2, min_improvement=0.5)
    errors = [50.0, 40.0, 39.9, 39.8, 38.0, 37.9, 37.8, 37.7, 37.6, 37.6]
    rates = [learning_rate(schedule, errors[:n], lambda _: True) for n in range(len(errors) + 1)]
    assert rates == [1e-2] * 4 + [1e-3] * 3 + [1e-4] * 4


def test_fixed_switches_at_its_epochs() -> None:
    schedule = ScheduleConfig(rule="fixed", switch_epochs=[2, 4])
    rates = [learning_rate(schedule, [50.0] * epoch, lambda _: True) for epoch in range(6)]
    assert rates == [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4]


@pytest.mark.parametrize(
    ("overrides", "processes", "sentence"),
    [
        (["batch_size=100"], 8, "batch_size=100 is not divisible by 8 processes"),
        (["micro_batch=48"], 1, "micro_batch=48 does not divide"),
        (["data.scale=200"], 1, "data.scale=200 is smaller than data.crop=224"),
        (["data.scale=[300,256]"], 1, r"data.scale=\[300, 256\] must be"),
        (["data.val_scale=100"], 1, "data.val_scale=100 is smaller"),
        (["precision=int8"], 1, "precision=int8 is unknown: choose from fp32, tf32, bf16, fp16"),
        (["data.on_error=ignore"], 1, "data.on_error=ignore is unknown"),
        (["epochs=0"], 1, "epochs=0 must be at least 1"),
        (["dropout=1.0"], 1, "dropout=1.0 must be in"),
        (["seed=-1"], 1, "seed=-1 must be"),
        (["schedule.rule=fixed", "schedule.switch_epochs=[1]"], 1, "must have one epoch fewer"),
        (["model.fc=[10]"], 1, "must give the widths of fc1 and fc2"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    overrides: list[str], processes: int, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        validate(composed(*overrides), processes)


def test_every_architecture_and_choice_is_accepted() -> None:
    for model in ("A", "B", "C", "vgg19", "vgg19_spp", "vgg_b", "small14", "small30"):
        validate(composed(f"model={model}"), 8)
    assert composed("model=small14").data.scale == 256
    assert composed("model=small14").epochs == 75
    assert composed("model=C").data.scale == [256, 512]
