"""Initial weights (Sec. 2.2): zero-mean Gaussians; biases are zero."""

import math
from typing import TYPE_CHECKING

from configs.schema import ActConfig, InitConfig

if TYPE_CHECKING:
    from torch import nn


def conv_std(n: int, n_hat: int, init: InitConfig, slope: float) -> float:
    """Standard deviation of a convolution's weights; slope: the rectifier's initial a.

    n = k*k*c (fan_in) and n_hat = k*k*d (fan_out), as in the paper. Eq. 14 applies to the first
    layer too. Raises ValueError for an unknown rule.
    """
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


def initialise(network: "nn.Module", init: InitConfig, act: ActConfig, seed: int) -> None:
    """Draw the weights of all conv and fc layers on the CPU; slopes keep their initial value.

    Each layer has its own generator, so two architectures with the same layer in the same place
    give it the same weights.
    """
    import torch  # takes seconds, and describe.py needs conv_std only
    from torch import nn

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    fc_stds = iter(init.fc_std)
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            n, n_hat = layer.weight[0].numel(), layer.weight[:, 0].numel()
            std = conv_std(n, n_hat, init, act.slope)
        else:
            std = next(fc_stds)
        generator = torch.Generator().manual_seed((seed << 16) + place)
        nn.init.normal_(layer.weight, 0, std, generator)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
