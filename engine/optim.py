"""SGD as the paper runs it (Sec. 3, Eq. 4)."""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from configs.schema import TrainConfig


def build_optimizer(network: nn.Module, config: "TrainConfig") -> torch.optim.SGD:
    """SGD with momentum; weight decay on the weights of conv and fc layers only.

    Slopes are never decayed: decay would push PReLU towards ReLU (Sec. 2.1). Biases are not
    either; the paper does not say, and decaying them only shifts the outputs towards zero without
    limiting what the network can express.
    """
    weights = [p for name, p in network.named_parameters() if name.endswith(".weight")]
    others = [p for name, p in network.named_parameters() if not name.endswith(".weight")]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # One pass over weights, gradients and momentum, all of the same strides. Not with fp16: if
    # the scaler skips the first step, the momentum stays uninitialised (torch 2.14.1).
    fused = None if config.precision == "fp16" else True
    rate = config.schedule.rates[0]
    return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=fused)


def set_learning_rate(optimizer: torch.optim.SGD, rate: float) -> None:
    """Change the rate; the velocity, rate * momentum buffer in torch, changes with it.

    Eq. 4 keeps the velocity's size across a switch instead. Gradients clipped at a norm of 1 could
    not turn a velocity ten times too large before the loss has risen (docs/choices.md).
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
