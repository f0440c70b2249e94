"""SGD with momentum as the paper runs it, and its learning rate (Sec. 3, Eq. 4)."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from configs.schema import ScheduleConfig, TrainConfig


class ParamGroup(TypedDict):
    """Parameters that share their hyperparameters."""

    params: list[nn.Parameter]
    lr: float
    weight_decay: float


class OptimizerState(TypedDict):
    """The momentum buffers, in the format of torch.optim.SGD's state dict."""

    state: dict[int, dict[str, Tensor]]  # index of the parameter -> {"momentum_buffer": ...}


class SGD:
    """Stochastic gradient descent with momentum (Eq. 4) and weight decay.

    For a parameter w with gradient g, in one pass of torch's fused kernel:

        buffer <- momentum * buffer + g + weight_decay * w
        w      <- w - lr * buffer

    torch.optim.SGD does the same, but imports torch's compiler, a quarter of a program's start-up
    time. This class has what torch's gradient scalers need of an optimiser.
    """

    def __init__(self, groups: Iterable[ParamGroup], momentum: float) -> None:
        """Allocate the buffers, with the parameters' devices and strides."""
        self.param_groups, self.momentum = list(groups), momentum
        parameters = [p for group in self.param_groups for p in group["params"]]
        self.buffers = {p: torch.zeros_like(p) for p in parameters}

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.buffers:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            updated = [p for p in group["params"] if p.grad is not None]
            if not updated:
                continue
            torch._fused_sgd_(
                tuple(updated),
                [p.grad for p in updated if p.grad is not None],
                [self.buffers[p] for p in updated] if self.momentum else [],
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

    Slopes are never decayed: decay would push PReLU towards ReLU (Sec. 2.1). Nor are biases; the
    paper does not say, and decaying them would shift the outputs towards zero without limiting what
    the network can express.
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

    In Eq. 4 the velocity keeps its size across a switch. But gradients clipped to a norm of 1
    cannot turn a velocity ten times too large before the loss has risen (docs/choices.md).
    """
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate(
    schedule: "ScheduleConfig", val_errors: list[float], has_updates: Callable[[int], bool]
) -> float:
    """The rate of the next epoch, given `val_errors`, the top-1 errors (%) of all epochs so far.

    fixed: the i-th switch happens at the start of epoch switch_epochs[i] (epochs count from 0).
    plateau: an epoch improves if its error is at least `min_improvement` points below the best so
    far. After `patience` epochs in a row without improvement the next rate begins, and the count
    restarts. Epochs without an update (has_updates) do not count; they occur where an epoch has
    fewer images than a batch. The last rate stays until the end. The paper gives no rule (Sec. 3);
    this is ours.
    """
    epoch = len(val_errors)
    if schedule.rule == "fixed":
        return schedule.rates[sum(epoch >= switch for switch in schedule.switch_epochs)]
    best, num_stale, level = float("inf"), 0, 0
    for number, error in enumerate(val_errors):
        if not has_updates(number):
            continue
        if error <= best - schedule.min_improvement:
            best, num_stale = error, 0
        else:
            num_stale += 1
        if num_stale >= schedule.patience:
            level, num_stale = min(level + 1, len(schedule.rates) - 1), 0
    return schedule.rates[level]
