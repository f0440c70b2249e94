"""Initialisation of weights (Sec. 2.2): zero-mean Gaussians, biases zero."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from configs.schema import ActConfig, InitConfig


def conv_std(conv: nn.Conv2d, init: "InitConfig", slope: float) -> float:
    """Standard deviation of a convolution's weights; slope: the rectifier's initial a.

    n = k*k*c (fan_in) and n_hat = k*k*d (fan_out) as in the paper. The backward form also applies
    to the first layer. Raises ValueError for an unknown rule.
    """
    side = conv.kernel_size[0] * conv.kernel_size[1]
    n, n_hat = side * conv.in_channels, side * conv.out_channels
    match init.rule:
        case "he":  # Eq. 14, with Eq. 15 for PReLU
            return math.sqrt(2 / ((1 + slope**2) * n_hat))
        case "he_forward":  # Eq. 10, with Eq. 15 for PReLU
            return math.sqrt(2 / ((1 + slope**2) * n))
        case "xavier":  # the forward case, as in the paper's comparison
            return math.sqrt(1 / n)
        case "gaussian":  # [16]
            return init.conv_std
    raise ValueError(f"unknown init rule {init.rule!r}")


def layer_stds(network: nn.Module, init: "InitConfig", act: "ActConfig") -> dict[str, float]:
    """Initial std of the weights of every conv and fc layer, by module name, in network order."""
    stds: dict[str, float] = {}
    fc_stds = iter(init.fc_std)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            stds[name] = conv_std(module, init, act.slope)
        elif isinstance(module, nn.Linear):
            stds[name] = next(fc_stds)
    return stds


@torch.no_grad()
def initialise(network: nn.Module, init: "InitConfig", act: "ActConfig", seed: int) -> None:
    """Draw all weights of a network on the CPU; slopes keep their initial value.

    Each layer has its own generator: a layer gets the same weights in every architecture that has
    it at the same place.
    """
    for place, (name, std) in enumerate(layer_stds(network, init, act).items()):
        layer = network.get_submodule(name)
        assert isinstance(layer.weight, Tensor)
        assert isinstance(layer.bias, Tensor)
        generator = torch.Generator().manual_seed((seed << 16) + place)
        layer.weight.normal_(0, std, generator=generator)
        layer.bias.zero_()
