"""Architectures against the paper's tables, and their parts against definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.activations import FixedRectifier, PReLU
from models.describe import Description, describe
from models.network import Network, build_network
from models.spp import SpatialPyramidPooling
from tests.conftest import composed


def description(*overrides: str, crop: int = 224) -> Description:
    config = composed(*overrides)
    return describe(config.model, config.act, config.init, 1000, crop)


def network(*overrides: str, num_classes: int = 10, **options: object) -> Network:
    config = composed("model.fc=[32,32]", *overrides)
    return build_network(config.model, config.act, config.init, num_classes, **options)  # type: ignore[arg-type]


# Weight layers, multiply-adds (x 1e10) and weights + biases (x 1e6): Table 3 at 224, our count.
GOLDEN = {
    "A": (19, 1.906, 178.02),
    "B": (22, 2.322, 183.33),
    "C": (22, 5.346, 330.60),
    "vgg19": (19, 1.963, 143.67),
    "vgg16": (16, 1.547, 138.36),
    "vgg19_spp": (19, None, None),
    "vgg_b": (13, None, None),
    "small14": (14, None, None),
    "small30": (30, None, None),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_layers_and_cost_match_the_paper(name: str) -> None:
    layers, multiply_adds, parameters = GOLDEN[name]
    described = description(f"model={name}")
    assert described.weight_layers == layers
    if multiply_adds is not None:
        assert described.multiply_adds / 1e10 == pytest.approx(multiply_adds, abs=0.0005)
        assert described.parameters / 1e6 == pytest.approx(parameters, abs=0.005)


def test_parameter_counts_match_torch() -> None:
    described = description("model=small14")
    config = composed("model=small14")
    with torch.device("meta"):
        built = build_network(config.model, config.act, config.init, 1000, seed=None)
    assert described.parameters + described.slopes == sum(p.numel() for p in built.parameters())


def test_small14_map_sizes_match_the_paper() -> None:
    shapes = {layer.name: layer.shape for layer in description("model=small14").layers}
    assert shapes["conv1"] == [64, 109, 109]
    assert [shapes[f"conv2_{i}"][1] for i in range(1, 5)] == [35, 36, 35, 36]
    assert [shapes[f"conv3_{i}"][1] for i in range(1, 7)] == [17, 18, 17, 18, 17, 18]
    assert shapes["spp"] == [256 * 50]


@pytest.mark.parametrize("name", GOLDEN)
def test_map_sizes_are_those_of_torch(name: str) -> None:
    config = composed(f"model={name}", "act=relu")
    for crop in (64, 112, 223, 224, 321):
        described = describe(config.model, config.act, config.init, 10, crop).layers
        with torch.device("meta"):
            built = build_network(config.model, config.act, config.init, 10, seed=None)
            x, shapes = torch.empty(1, 3, crop, crop), []
            for layer in built.trunk:
                x = layer(x)
                if not isinstance(layer, FixedRectifier):
                    shapes.append(list(x.shape[1:]))
        assert [layer.shape for layer in described if layer.kind in ("conv", "pool")] == shapes


def test_14_layer_model_has_13_shared_slopes() -> None:
    assert description("model=small14", "act=prelu_shared").slopes == 13


@pytest.mark.parametrize("name", ["A", "B", "C", "vgg19_spp"])
def test_large_models_end_in_63_bins_of_a_14_wide_map(name: str) -> None:
    layers = {layer.name: layer for layer in description(f"model={name}").layers}
    last = [layer for layer in layers.values() if layer.kind == "conv"][-1]
    assert last.shape[1:] == [14, 14]
    assert layers["spp"].shape == [last.shape[0] * 63]


def test_vgg19_without_spp_feeds_the_whole_last_map_to_fc1() -> None:
    maps = torch.randn(2, 5, 7, 7)
    assert torch.equal(SpatialPyramidPooling([7])(maps), maps.flatten(1))


def test_one_override_adds_layers() -> None:
    for extra in (3, 9):
        assert description("model=B", f"model.extra_convs={extra}").weight_layers == 22 + extra


def test_unknown_model_lists_the_choices() -> None:
    with pytest.raises(Exception, match=r"(?s)Could not find 'model/Z'.*small14"):
        composed("model=Z")


@pytest.mark.parametrize(("height", "width"), [(14, 14), (18, 18), (13, 17), (5, 9)])
def test_spp_bins_match_those_of_reference_11(height: int, width: int) -> None:
    levels = [7, 6, 3, 2, 1]
    maps = -1 - torch.rand(2, 3, height, width)  # negative everywhere
    expected = []
    for n in levels:
        level = torch.full((2, 3, n, n), -math.inf)
        for i in range(n):
            for j in range(n):
                rows = slice(math.floor(i * height / n), math.ceil((i + 1) * height / n))
                columns = slice(math.floor(j * width / n), math.ceil((j + 1) * width / n))
                level[:, :, i, j] = maps[:, :, rows, columns].amax((2, 3))
        expected.append(level.flatten(1))
    assert torch.equal(SpatialPyramidPooling(levels)(maps), torch.cat(expected, 1))


@pytest.mark.parametrize("act", ["relu", "lrelu", "prelu", "prelu_shared"])
def test_rectifiers_follow_eq_1_everywhere_but_after_fc3(act: str) -> None:
    net = network("model=small14", f"act={act}").double()
    slope = composed(f"act={act}").act.slope
    images = torch.randn(2, 3, 64, 64, dtype=torch.double)
    x = images
    for layer in net.trunk:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            x = layer(x)
        if isinstance(layer, nn.Conv2d):
            x = x.clamp(min=0) + slope * x.clamp(max=0)  # Eq. 1
    x = net.spp(x)
    for fc in (net.head.fc1, net.head.fc2):
        x = fc(x)
        x = x.clamp(min=0) + slope * x.clamp(max=0)
    torch.testing.assert_close(net(images), net.head.fc3(x))


@pytest.mark.parametrize("shared", [False, True])
def test_slope_gradient_follows_eq_2_and_3(shared: bool) -> None:
    rectifier = PReLU(1 if shared else 4, 0.25).double()
    y = torch.randn(3, 4, 5, 6, dtype=torch.double)
    upstream = torch.randn_like(y)
    rectifier(y).backward(upstream)
    terms = upstream * torch.where(y > 0, 0.0, y)
    expected = terms.sum().reshape(1) if shared else terms.sum((0, 2, 3))
    torch.testing.assert_close(rectifier.slopes.grad, expected)


def test_13_slope_parameters_start_at_a_quarter() -> None:
    slopes = {n: p for n, p in network("model=small14").named_parameters() if "slopes" in n}
    assert len(slopes) == 13
    assert all((p == 0.25).all() for p in slopes.values())


def test_gradients_of_the_whole_network_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    net = network("model=small14", num_classes=3).double()
    images = 50 * torch.randn(2, 3, 48, 48, dtype=torch.double)
    labels = torch.tensor([0, 2])
    F.cross_entropy(net(images), labels).backward()
    for name in ("trunk.rect2_2.slopes", "head.rect1.slopes", "trunk.conv3_1.weight"):
        parameter = net.get_parameter(name)
        assert parameter.grad is not None
        flat, place = parameter.data.view(-1), int(parameter.grad.abs().argmax())
        step, losses = 1e-6, []
        start = flat[place].item()
        for sign in (1, -1):
            flat[place] = start + sign * step
            losses.append(F.cross_entropy(net(images), labels).item())
        flat[place] = start
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx(parameter.grad.view(-1)[place].item(), rel=1e-3)
