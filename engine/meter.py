"""What happened since the last metrics line: losses and time, read only when they are needed."""

import math
import time

import torch
from torch import Tensor

from configs.errors import UserError
from engine.distributed import World


class Meter:
    """Losses stay on the device until a line or a checkpoint needs them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.unread: list[Tensor] = []
        self.restart(0)

    def restart(self, step: int) -> None:
        """Start the clock anew after `step` steps; losses stay."""
        self.clock, self.waited, self.since = time.perf_counter(), 0.0, step

    def rates(self, step: int, batch_size: int) -> dict[str, float]:
        """Images per second, and the fraction of time spent waiting for data, since the restart."""
        seconds = time.perf_counter() - self.clock
        done = (step - self.since) * batch_size
        return {"images_per_second": done / seconds, "data_wait": self.waited / seconds}

    def read_losses(self, step: int) -> list[float]:
        """The losses of the steps up to `step` not read before, averaged over the processes.

        Raises UserError, naming the step, if one is not a number.
        """
        if not self.unread:
            return []
        losses = self.world.sum(torch.stack(self.unread).double()) / self.world.size
        first = step - len(self.unread) + 1
        self.unread = []
        for offset, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                raise UserError(f"the loss became {loss} at step {first + offset}")
        return losses.tolist()
