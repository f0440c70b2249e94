"""One optimiser step (forward, backward, update), and what the last steps measured."""

import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.loading import Batch
from data.normalise import network_input
from engine.distributed import World
from engine.optim import SGD
from engine.precision import Precision
from engine.progress import Pace


class StepResult(NamedTuple):
    """What a step measures, still on the device."""

    loss: Tensor  # mean over this process's share of the batch
    gradient_norm: Tensor  # Euclidean, of the whole gradient over all processes, before clipping


@dataclass(eq=False)
class TrainingStep:
    """Calling it with this process's share of a batch updates the weights."""

    network: nn.Module
    optimizer: SGD
    mean: Tensor
    precision: Precision
    micro_batch: int  # images in one forward and backward pass; a larger batch takes several
    _: KW_ONLY
    gradient_norm: Callable[[], Tensor]  # Euclidean, of the whole gradient, on the device
    clip_norm: float | None  # a gradient of a larger norm is scaled down to it; None: no limit
    compiled: bool = False  # compile the preparation of images; the network's owner compiles it

    def __post_init__(self) -> None:
        self.scaler = self.precision.scaler()
        modules = self.network.modules()
        self.replicas = [m for m in modules if isinstance(m, DistributedDataParallel)]
        self.prepare = torch.compile(self._prepare) if self.compiled else self._prepare

    def _prepare(self, images: Tensor, colours: Tensor) -> Tensor:
        return network_input(images, self.mean, colours)

    def loss(self, images: Tensor, colours: Tensor, keys: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over some rows of a batch (data.loading.Batch)."""
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
            for replica in self.replicas:  # send gradients once, after the last round
                replica.require_backward_grad_sync = rows.stop >= size
            loss = self.loss(images[rows], colours[rows], keys[rows], labels[rows])
            loss = loss * (self.micro_batch / size)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        optimizer: Any = self.optimizer  # scalers ask for torch's own, but use only a part of it
        self.scaler.unscale_(optimizer)
        norm = self.gradient_norm()
        if self.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), self.clip_norm, norm)
        self.scaler.step(optimizer)
        self.scaler.update()
        return StepResult(total, norm)


class StepRecord(NamedTuple):
    """What a step measured, over all processes."""

    step: int
    loss: float
    gradient_norm: float


class StepStatistics:
    """Losses and gradient norms, kept on the device until they are needed, and timings."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.unread: list[tuple[int, StepResult]] = []
        self.pace = Pace()
        self.restart(0)

    def restart(self, step: int) -> None:
        """Start the clocks after `step` steps; losses are kept."""
        self.started, self.seconds_waited, self.first_step = time.perf_counter(), 0.0, step
        self.pace.restart(step)

    def add(self, step: int, result: StepResult) -> None:
        """Keep the result of a step."""
        self.unread.append((step, result))
        self.pace.stepped(step)

    def leave_out_a_step(self) -> None:
        """Leave the images of a skipped step out of the rate."""
        self.first_step += 1
        self.pace.first_step += 1

    def rates(self, step: int, batch_size: int) -> dict[str, float]:
        """Images per second, and the fraction of the time spent waiting, since the restart."""
        seconds = time.perf_counter() - self.started
        images = (step - self.first_step) * batch_size
        return {"images_per_second": images / seconds, "data_wait": self.seconds_waited / seconds}

    def read(self) -> list[StepRecord]:
        """The steps that have not been read yet; all processes call it together."""
        if not self.unread:
            return []
        steps = [step for step, _ in self.unread]
        results = torch.stack([torch.stack(result) for _, result in self.unread])
        self.unread = []
        # The mean over the processes: their losses differ, their norms do not.
        means = self.world.sum(results.double()) / self.world.size
        return [StepRecord(step, *row) for step, row in zip(steps, means.tolist(), strict=True)]
