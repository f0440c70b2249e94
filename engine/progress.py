"""How far a run is."""

import math
from dataclasses import dataclass, field
from typing import Protocol


@dataclass
class Progress:
    """How far a run is: with the tensors, all that a checkpoint remembers."""

    step: int = 0  # optimiser steps done
    val_errors: list[float] = field(default_factory=list)  # top-1 error (%) of each epoch done
    best: float = math.inf  # lowest of all validations
    validated: int = 0  # steps done at the last validation
    window: list[float] = field(default_factory=list)  # losses since the last metrics line
    norms: list[float] = field(default_factory=list)  # gradient norms since then
    recent: list[float] = field(default_factory=list)  # losses of the last steps, their level
    rose_at: int | None = None  # step since which the loss is far above that level


class ValErrors(Protocol):
    """What a validation finds."""

    @property
    def images(self) -> int: ...  # seen

    @property
    def top1_error(self) -> float: ...  # percent

    @property
    def top5_error(self) -> float: ...  # percent
