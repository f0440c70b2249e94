"""SGD as the paper runs it (Sec. 3, Eq. 4)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from configs.schema import TrainConfig


class ParamGroup(TypedDict):
    """Parameters that are updated alike."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


class OptimizerState(TypedDict):
    """All momentum, as torch.optim.SGD's state dict has it."""

    state: dict[int, dict[str, Tensor]]  # by number of parameter, {"momentum_buffer": ...}


class SGD:
    """Stochastic gradient descent with momentum (Eq. 4) and weight decay.

    For a parameter w with gradient g, in one pass of torch's fused kernel:

        buffer <- momentum * buffer + g + weight_decay * w
        w      <- w - lr * buffer

    torch.optim.SGD does the same, but imports torch's compiler, which takes a quarter of the time
    in which a program starts. This class has what torch's gradient scalers need of an optimiser.
    """

    def __init__(self, groups: Iterable[ParamGroup], momentum: float) -> None:
        """Allocates the buffers, on the parameters' devices and with their strides."""
        self.param_groups, self.momentum = list(groups), momentum
        self.buffers = {
            p: torch.zeros_like(p) for group in self.param_groups for p in group["params"]
        }

    def zero_grad(self) -> None:
        """Free all gradients."""
        for parameter in self.buffers:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            updated = [(p, p.grad) for p in group["params"] if p.grad is not None]
            if not updated:
                continue
            buffers = [self.buffers[parameter] for parameter, _ in updated]
            torch._fused_sgd_(
                [parameter for parameter, _ in updated],
                [gradient for _, gradient in updated],
                buffers if self.momentum else [],
                weight_decay=group["weight_decay"],
                momentum=self.momentum,
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )


def build_optimizer(network: nn.Module, config: "TrainConfig") -> SGD:
    """SGD with weight decay on the weights of conv and fc layers only.

    Slopes are never decayed: decay would push PReLU towards ReLU (Sec. 2.1). Biases are not
    either; the paper does not say, and decaying them only shifts the outputs towards zero without
    limiting what the network can express.
    """
    weights = [p for name, p in network.named_parameters() if name.endswith(".weight")]
    others = [p for name, p in network.named_parameters() if not name.endswith(".weight")]
    rate = config.schedule.rates[0]
    groups: list[ParamGroup] = [
        {"params": weights, "lr": rate, "weight_decay": config.weight_decay},
        {"params": others, "lr": rate, "weight_decay": 0.0},
    ]
    return SGD(groups, config.momentum)


def set_learning_rate(optimizer: SGD, rate: float) -> None:
    """Change the rate; the velocity, rate * buffer, changes with it.

    Eq. 4 keeps the velocity's size across a switch instead. Gradients clipped at a norm of 1 could
    not turn a velocity ten times too large before the loss has risen (docs/choices.md).
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
