"""What happened since the last metrics line: losses and time, read only when they are needed."""

import time

import torch

from engine.distributed import World
from engine.step import StepResult


class Meter:
    """Losses and gradient norms stay on the device until a line or a checkpoint needs them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.unread: list[tuple[int, StepResult]] = []
        self.restart(0)

    def restart(self, step: int) -> None:
        """Start the clock anew after `step` steps; losses stay."""
        self.clock, self.waited, self.since = time.perf_counter(), 0.0, step

    def rates(self, step: int, batch_size: int) -> dict[str, float]:
        """Images per second, and the fraction of time spent waiting for data, since the restart."""
        seconds = time.perf_counter() - self.clock
        done = (step - self.since) * batch_size
        return {"images_per_second": done / seconds, "data_wait": self.waited / seconds}

    def read(self) -> list[tuple[int, float, float]]:
        """(step, loss, gradient norm) of the steps not read before; losses of all processes."""
        if not self.unread:
            return []
        steps = [step for step, _ in self.unread]
        results = torch.stack([torch.stack(result) for _, result in self.unread])
        self.unread = []
        values = self.world.sum(results.double()) / self.world.size  # norms are equal everywhere
        return [(step, *row) for step, row in zip(steps, values.tolist(), strict=True)]
