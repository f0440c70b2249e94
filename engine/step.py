"""One optimiser step: forward, backward and update over a batch, in one or several rounds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.loading import Batch
from data.normalise import network_input
from engine.optim import SGD
from engine.precision import Precision


class StepResult(NamedTuple):
    """Two numbers of a step, on the device, not yet read."""

    loss: Tensor  # mean over this process's share of the batch
    gradient_norm: Tensor  # Euclidean, of the gradient over all processes and parameters, unclipped


class TrainingStep:
    """Holds what a step needs; calling it with a process's share of a batch does the step.

    gradient_norm: the Euclidean norm of the whole gradient, on the device (engine/parallel.py).
    clip_norm: a gradient of a larger norm is scaled down to it; None: no limit.
    compiled: whether to compile what becomes of the images before the network, which is compiled by
        its owner (Network.compiled).
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: SGD,
        mean: Tensor,
        precision: Precision,
        micro_batch: int,
        *,
        gradient_norm: Callable[[], Tensor],
        clip_norm: float | None,
        compiled: bool = False,
    ) -> None:
        self.network, self.optimizer, self.mean = network, optimizer, mean
        self.precision, self.micro_batch = precision, micro_batch
        self.gradient_norm, self.clip_norm = gradient_norm, clip_norm
        self.scaler = precision.scaler()
        self.replicas = [m for m in network.modules() if isinstance(m, DistributedDataParallel)]
        self.prepare = torch.compile(self._prepare) if compiled else self._prepare

    def _prepare(self, images: Tensor, colours: Tensor) -> Tensor:
        return network_input(images, self.mean, colours)

    def loss(self, images: Tensor, colours: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of some images; masks and colours follow from what was drawn."""
        with self.precision.autocast():
            logits = self.network(self.prepare(images, colours), keys)
        return F.cross_entropy(logits.float(), labels)

    def preview(self, batch: Batch, count: int = 32) -> Tensor:
        """The first images of a batch as the network sees them, [count, 3, H, W]."""
        device = self.mean.device
        images, colours = batch.images[:count].to(device), batch.colours[:count].to(device)
        return network_input(images, self.mean, colours)

    def __call__(self, batch: Batch) -> StepResult:
        """Update the weights."""
        device, size = self.precision.device, len(batch.labels)
        parts = [batch.images, batch.colours, batch.keys, batch.labels]
        images, colours, keys, labels = [part.to(device, non_blocking=True) for part in parts]
        self.optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for first in range(0, size, self.micro_batch):
            rows = slice(first, first + self.micro_batch)
            for replica in self.replicas:  # their gradients travel once, with the last round
                replica.require_backward_grad_sync = rows.stop >= size
            loss = self.loss(images[rows], colours[rows], keys[rows], labels[rows])
            loss = loss * (self.micro_batch / size)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        optimizer: Any = self.optimizer  # scalers declare torch's own, of which they use a part
        self.scaler.unscale_(optimizer)
        norm = self.gradient_norm()
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), self.clip_norm, norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        return StepResult(total, norm)
