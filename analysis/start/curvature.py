"""Curvature of a loss: Hessian-vector products and power iteration."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def curvature(
    loss: Callable[[], Tensor], parameters: Sequence[Tensor], iterations: int
) -> tuple[float, float]:
    """(curvature along the gradient, largest eigenvalue) of the Hessian H of `loss`.

    Both are Rayleigh quotients of a power iteration that starts from the gradient: the first, and
    the largest in size. The latter is a lower bound of the largest eigenvalue, and close to it
    where one dominates.
    """
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    direction = [g.detach() for g in gradients]
    quotients = []
    for _ in range(iterations):
        norm = _dot(direction, direction).sqrt()
        direction = [d / norm for d in direction]
        product = torch.autograd.grad(gradients, parameters, direction, retain_graph=True)
        quotients.append(float(_dot(direction, product)))
        direction = [p.detach() for p in product]
    return quotients[0], max(quotients, key=abs)


def bound(rate: float, momentum: float) -> float:
    """Largest curvature at which heavy-ball descent does not diverge: 2 (1 + momentum) / rate."""
    return 2 * (1 + momentum) / rate


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack(
        [torch.sum(x * y, dtype=torch.float64) for x, y in zip(a, b, strict=True)]
    ).sum()
