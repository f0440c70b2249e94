"""Sec. 2.2: initial standard deviations, in closed form and of drawn weights."""

import math

import pytest
import torch

from models.describe import describe
from models.network import build_network
from tests.conftest import composed


def stds(*overrides: str) -> dict[str, float]:
    config = composed(*overrides)
    layers = describe(config.model, config.act, config.init, 1000, 224).layers
    return {layer.name: layer.std for layer in layers if layer.std is not None}


def test_vgg_b_stds_match_the_paper() -> None:
    std_of = stds("model=vgg_b", "act=relu")
    printed = {"conv1_1": 0.059, "conv2_1": 0.042, "conv3_1": 0.029, "conv4_1": 0.021}
    for name, value in printed.items():
        assert std_of[name] == pytest.approx(value, abs=0.0005)


def test_eq_14_telescopes_to_the_ratio_of_the_ends() -> None:
    """With Eq. 14, the product of n_l Var[w_l] / 2 over l = 2 .. L is c_2 / d_L (Sec. 2.2)."""
    std_of = stds("model=vgg_b", "act=relu")
    filters = [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]
    names = [name for name in std_of if name.startswith("conv")]
    gains = [9 * filters[i - 1] * std_of[names[i]] ** 2 / 2 for i in range(1, len(filters))]
    assert math.prod(gains) == pytest.approx(filters[0] / filters[-1])


@pytest.mark.parametrize(
    ("init", "act", "variance"),
    [
        # conv2_1 of small14: k = 2, c = 64, d = 128; n = 256, n_hat = 512.
        ("he", "relu", 2 / 512),
        ("he", "prelu", 2 / (1.0625 * 512)),
        ("he", "lrelu", 2 / (1.0001 * 512)),
        ("he_forward", "relu", 2 / 256),
        ("he_forward", "prelu_shared", 2 / (1.0625 * 256)),
        ("xavier", "prelu", 1 / 256),
        ("gaussian", "relu", 0.01**2),
    ],
)
def test_conv_variance(init: str, act: str, variance: float) -> None:
    assert stds("model=small14", f"init={init}", f"act={act}")["conv2_1"] ** 2 == pytest.approx(
        variance
    )


def test_fc_stds_do_not_depend_on_the_rule() -> None:
    for init in ("he", "xavier"):
        std_of = stds("model=small14", f"init={init}")
        assert (std_of["fc1"], std_of["fc2"], std_of["fc3"]) == (0.01, 0.01, 0.001)


def test_drawn_weights_have_the_stated_std_and_depend_on_the_seed() -> None:
    config = composed("model=small14", "model.fc=[256,128]")
    arguments = (config.model, config.act, config.init, 10)
    net, again, other = (build_network(*arguments, seed=seed) for seed in (1, 1, 2))
    expected = stds("model=small14", "model.fc=[256,128]")
    for name in ("conv1", "conv2_3", "conv3_6"):
        weight = net.trunk.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(expected[name], rel=0.03)
        assert abs(weight.mean().item()) < 0.03 * expected[name]
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))
        if name.endswith("bias"):
            assert not parameter.any()
        if name.endswith("weight"):
            assert not torch.equal(parameter, other.get_parameter(name))
