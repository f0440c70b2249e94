"""A run as tables and figures need it, kept as one small JSON file: its record."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

SCALED = "scaled-"  # begins the name of a scaled experiment


@dataclass
class Run:
    """One run, or (experiment `ensemble`) several networks tested together."""

    name: str
    experiment: str | None = None  # file of configs/experiment/
    seed: int = 0
    data: str = ""  # imagenet | folder | synthetic
    source: str = ""  # name of the data set's folder
    num_classes: int = 0
    batch_size: int = 0
    epochs: float = 0  # asked for
    max_steps: int | None = None
    epochs_done: int = 0
    steps: int = 0  # done
    validated: int = 0  # steps done at the last validation that a checkpoint knows
    finished: bool = False
    changed: list[str] = field(default_factory=list)  # makes it another experiment: "key: a -> b"
    noted: list[str] = field(default_factory=list)  # differs, but is worth showing
    val: list[dict[str, float]] = field(default_factory=list)  # step, epoch, errors, images
    train: list[tuple[int, float]] = field(default_factory=list)  # step, loss since the one before
    gradients: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # layer: step, norm
    slopes: dict[str, dict[str, Any]] = field(default_factory=dict)  # layer: mean, quantiles, count
    hours: float = 0  # of training, without validation
    images_per_second: float | None = None  # median, all processes
    model: str = ""  # as model_label has it
    sessions: list[dict[str, Any]] = field(default_factory=list)  # what reproduce.py started
    results: dict[str, dict[str, Any]] = field(default_factory=dict)  # of result files, by name

    @property
    def scaled(self) -> bool:
        return (self.experiment or "").startswith(SCALED)

    @property
    def commit(self) -> str | None:
        """Of the last session that trained; None: not known."""
        trained = [one for one in self.sessions if one["program"] == "train.py"]
        return trained[-1]["commit"] if trained else None

    @property
    def length(self) -> str:
        """How far it is, for a person."""
        if self.max_steps is not None and (self.scaled or self.max_steps <= self.steps):
            return f"{self.steps:,} steps"
        return f"{self.epochs_done} of {self.epochs} epochs"


def to_json(run: Run) -> str:
    """The record of a run."""
    return json.dumps(asdict(run), separators=(",", ":")) + "\n"


def from_json(text: str) -> Run:
    """What to_json made."""
    return Run(**json.loads(text))


def model_label(name: str, extra_convs: int, *, scaled: bool) -> str:
    """What throughputs are kept by: A, B+9, scaled-small30."""
    return (SCALED if scaled else "") + name + (f"+{extra_convs}" if extra_convs else "")
