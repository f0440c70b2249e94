"""Being told to stop: a signal asks, the processes agree at a step, the run is saved."""

import signal
from types import FrameType

import torch

from engine.distributed import World

# What a scheduler or a person sends: SLURM's time limit (SIGTERM, or SIGUSR1 ahead of it), Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# Steps between the agreements of several processes: each makes the host wait for the device.
_AGREE_EVERY = 10


class StopRequest:
    """Listens to SIGNALS while open; a second signal of a kind acts as it would without us."""

    def __init__(self, world: World) -> None:
        self.world, self.asked = world, False
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[signal.Signals(number)])

    def due(self, step: int) -> bool:
        """Whether processes agree after this step: one alone always does."""
        return self.world.size == 1 or step % _AGREE_EVERY == 0

    def agreed(self) -> bool:
        """Whether any process was asked to stop; all processes ask together, and agree."""
        return bool(self.world.sum(torch.tensor(float(self.asked))))
