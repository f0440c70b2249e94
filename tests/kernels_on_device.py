"""The kernels of models/kernels.py, compared with autograd; run by test_models_kernels.py.

This needs its own process: on a CPU, TRITON_INTERPRET=1 must be set when Triton is imported.
"""

import os
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from models import kernels
from models.dropout import Dropout, keep_mask
from models.network import Network, build_network
from tests.conftest import composed

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# Largest error relative to the largest value. The interpreter truncates to bf16; a GPU rounds.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
KINDS = ["relu", "leaky", "negative", "channels", "shared"]
SHAPES = [
    (5, 3, 13, 29),
    (2, 64, 7, 9),
    (1, 96, 29, 19),
    (1, 100, 1, 1),
    (37, 3),
    (37, 96),
    (9, 640),
]


def slopes_of(kind: str, num_channels: int) -> Tensor | float:
    """Slopes of both signs, and zero."""
    if kind == "channels":
        return torch.linspace(-0.5, 1.5, num_channels).where(torch.arange(num_channels) != 1, 0)
    return {"relu": 0.0, "leaky": 0.25, "negative": -0.5, "shared": torch.tensor([-0.3])}[kind]


def reference(x: Tensor, bias: Tensor, slopes: Tensor | float, mask: Tensor | None) -> Tensor:
    """Eq. 1 and dropout in fp64."""
    shape = (1, -1) + (1,) * (x.dim() - 2)
    z = x.double() + bias.double().reshape(shape)
    a = slopes.double().reshape(shape) if isinstance(slopes, Tensor) else slopes
    y = torch.where(z > 0, z, a * z)
    return y if mask is None else y * mask / 0.7


def assert_close(ours: Tensor, truth: Tensor, tolerance: float) -> None:
    assert ours.shape == truth.shape
    error = (ours.double() - truth.double()).abs().max()
    assert error <= tolerance * truth.abs().max()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*product(KINDS, [torch.float32, torch.bfloat16]), ("channels", torch.float16)],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_gradients_follow_eq_1(
    shape: tuple[int, ...], kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, device=DEVICE).to(dtype)
    if x.dim() == 4 and kind != "leaky":  # also other layouts than channels_last
        x = x.contiguous(memory_format=torch.channels_last)
    inputs = [x, torch.randn(shape[1], device=DEVICE)]
    slopes = slopes_of(kind, shape[1])
    if isinstance(slopes, Tensor):
        inputs.append(slopes.to(DEVICE))
    dropout = keys = mask = None
    if x.dim() == 2:
        dropout = Dropout(0.3, 1, shape[1]).to(DEVICE)
        keys = torch.randint(-(2**62), 2**62, (shape[0],), device=DEVICE)
        mask = keep_mask(keys, dropout.units, 0.3)
    upstream = torch.randn(shape, device=DEVICE).to(dtype)

    def results(fused: bool) -> list[Tensor]:
        leaves = [leaf.clone().requires_grad_() for leaf in inputs]
        a = leaves[2] if len(leaves) == 3 else slopes
        if fused:
            y = kernels.rectify(leaves[0], leaves[1], a, dropout, keys)
            assert y.dtype == dtype
        else:
            y = reference(leaves[0], leaves[1], a, mask)
        return [y, *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]

    ours, truth = results(fused=True), results(fused=False)
    for i, tolerance in enumerate([TOLERANCES[dtype]] * 2 + [1e-5] * (len(inputs) - 1)):
        assert_close(ours[i], truth[i], tolerance)
    if DEVICE == "cuda":
        again = results(fused=True)
        assert all(torch.equal(a, b) for a, b in zip(again, ours, strict=True))


@pytest.mark.parametrize("drop", [0.5, 0.3])
def test_masks_match_dropout_bit_for_bit(drop: float) -> None:
    dropout, keys = Dropout(drop, 2, 600).to(DEVICE), torch.arange(-40, 40, device=DEVICE) << 40
    ones = torch.ones(80, 600, device=DEVICE)
    ours = kernels.rectify(ones, torch.zeros(600, device=DEVICE), 0.0, dropout, keys)
    assert torch.equal(ours > 0, keep_mask(keys, dropout.units, drop))
    if drop == 0.5:
        assert torch.equal(ours, dropout(ones, keys))
    assert torch.equal(kernels.rectify(ones, torch.zeros(600, device=DEVICE), 0.0, dropout), ones)


def test_infinities_and_nan_are_treated_as_by_relu() -> None:
    x = torch.tensor([[-torch.inf, torch.inf, torch.nan]], device=DEVICE, requires_grad=True)
    y = kernels.rectify(x, torch.zeros(3, device=DEVICE), 0.0)
    torch.testing.assert_close(y, x.relu(), equal_nan=True)
    y.backward(torch.full_like(y, torch.inf))  # an overflow under fp16's loss scale
    assert x.grad is not None
    assert x.grad[0, 0] == 0


def network(kernel: str, act: str) -> Network:
    config = composed("model=small14", "model.fc=[40,32]", f"act={act}", f"act.kernel={kernel}")
    net = build_network(config.model, config.act, config.init, 5, seed=1)
    with torch.no_grad():  # biases of both signs, and logits that differ
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0))
            elif "fc" in name:
                parameter.mul_(20)
    return net.to(DEVICE).to(memory_format=torch.channels_last)


def results(net: nn.Module) -> list[Tensor]:
    """Logits with dropout, and the gradients of all parameters."""
    generator = torch.Generator().manual_seed(2)
    images = 50 * torch.randn(2, 3, 48, 48, generator=generator).to(DEVICE)
    logits = net(images, torch.tensor([5, -7], device=DEVICE))
    grads = torch.autograd.grad(logits.square().sum(), list(net.parameters()))
    return [logits.detach(), *grads]


@pytest.mark.parametrize("act", ["relu", "prelu"])
def test_a_network_agrees_with_its_eager_twin(act: str) -> None:
    eager, ours = network("eager", act), network("triton", act)
    assert ours.state_dict().keys() == eager.state_dict().keys()
    for mine, theirs in zip(results(ours), results(eager), strict=True):
        assert_close(mine, theirs, 1e-4)


def test_the_network_compiles_without_graph_breaks() -> None:
    ours = network("triton", "prelu")
    whole = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(results(whole), results(ours), strict=True):
        assert_close(mine, theirs, 1e-5)
