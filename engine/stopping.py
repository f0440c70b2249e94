"""Stopping on a signal: the processes agree on a step at which all stop."""

import signal
from types import FrameType

import torch

from engine.distributed import World

# SLURM sends SIGTERM at the time limit, or SIGUSR1 ahead of it; Ctrl-C is SIGINT.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# Steps between agreements of several processes. Each makes the host wait until the device has done
# all queued work.
_AGREE_EVERY = {"cpu": 10, "cuda": 50}


class StopRequest:
    """Catches SIGNALS while open; a second signal of the same kind acts as usual."""

    def __init__(self, world: World) -> None:
        self.world, self.asked = world, False
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._handlers[signal.Signals(number)])

    def due(self, step: int) -> bool:
        """Whether the processes should agree after this step; a single process always does."""
        return self.world.size == 1 or step % _AGREE_EVERY[self.world.device.type] == 0

    def agreed(self) -> bool:
        """Whether any process was asked to stop; all call it together and get the same answer."""
        return bool(self.world.sum(torch.tensor(float(self.asked))))
