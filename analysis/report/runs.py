"""What tables and figures need of a run, kept in one small JSON file: results/records/NAME.json."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from analysis.report.paper import ENSEMBLE, ENSEMBLE_MEMBERS, SCALED_CROP, Test
from common.errors import refusing
from configs.store import FlatConfig
from engine.progress import Validation
from models.learned import Slopes

if TYPE_CHECKING:
    from evaluation.result import Result  # imports torch, which loads for seconds

_SCALED = "scaled-"  # prefix of a scaled experiment's name


@dataclass(frozen=True)
class Session:
    """One call of train.py or eval.py by reproduce.py: a line of sessions.jsonl."""

    program: str
    command: str
    status: int
    commit: str | None = None
    processes: int | None = None  # None: unknown
    launcher: str = ""
    began: str = ""
    seconds: float = 0


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
    validated: int = 0  # step of the last validation that a checkpoint knows of
    finished: bool = False
    changed: list[str] = field(default_factory=list)  # make it another experiment: "key: a -> b"
    overrides: FlatConfig = field(default_factory=dict)  # the same of a scaled run, key: value
    noted: list[str] = field(default_factory=list)  # other differences worth showing
    val: list[Validation] = field(default_factory=list)
    train: list[tuple[int, float]] = field(default_factory=list)  # step, mean loss since the last
    gradients: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # layer: step, norm
    slopes: dict[str, Slopes] = field(default_factory=dict)  # by layer, at the last checkpoint
    slopes_over_time: list[tuple[int, dict[str, Slopes]]] = field(default_factory=list)  # by step
    trained_by: str | None = None  # the commit that metrics.jsonl names last
    filters: str = ""  # conv1's, drawn by models.learned.filter_grid: a PNG file in base64
    hours: float = 0  # of training, without validation
    images_per_second: float | None = None  # median, all processes
    model: str = ""  # as model_label has it
    sessions: list[Session] = field(default_factory=list)
    results: "dict[str, Result]" = field(default_factory=dict)  # by name of the result file

    @property
    def scaled(self) -> bool:
        return (self.experiment or "").startswith(_SCALED)

    @property
    def base_experiment(self) -> str:
        """The experiment as tables name it, without `scaled-`; "" if it is of none."""
        return (self.experiment or "").removeprefix(_SCALED)

    @property
    def is_ensemble(self) -> bool:
        return self.base_experiment == ENSEMBLE

    @property
    def commit(self) -> str | None:
        """The commit of the last session that trained; None: unknown."""
        sessions = (s.commit for s in reversed(self.sessions) if s.program == "train.py")
        return self.trained_by or next(sessions, None)

    @property
    def length(self) -> str:
        """How long it has trained, for a reader: `3 of 75 epochs`, `400 steps`."""
        if self.is_ensemble:
            return f"{len(ENSEMBLE_MEMBERS)} models"
        if self.max_steps is not None and (self.scaled or self.max_steps <= self.steps):
            return f"{self.steps:,} steps"
        return f"{self.epochs_done} of {self.epochs} epochs"

    def has_reached(self, max_steps: int | None) -> bool:
        """Whether it has done its epochs, or `max_steps` steps, and was validated after them."""
        has_steps = max_steps is not None and self.steps >= max_steps
        is_done = has_steps or self.epochs_done >= self.epochs
        return is_done and self.validated == self.steps


@dataclass(frozen=True)
class Edition:
    """A version of all experiments: the paper's, scaled down, or on another data set."""

    scaled: bool = False
    data: str = "imagenet"
    overrides: tuple[tuple[str, str], ...] = ()  # of scaled runs: keys that differ from their file

    @staticmethod
    def of(run: Run) -> "Edition":
        """The edition of a run."""
        overrides = tuple((key, str(value)) for key, value in sorted(run.overrides.items()))
        return Edition(run.scaled, run.data, overrides)

    @property
    def is_paper(self) -> bool:
        """Whether its numbers may be compared with the paper's."""
        return not self.scaled and self.data == "imagenet"

    @property
    def note(self) -> str:
        """The warning above each of its tables; "" for the paper's edition."""
        if self.is_paper:
            return ""
        if self.scaled:
            changed = ", ".join(f"{key}={value}" for key, value in self.overrides)
            return (
                "**Scaled down:** small crops, narrow layers, short runs, few test images, as "
                f"configs/experiment/scaled*.yaml say{f', but {changed}' if changed else ''}. The "
                "paper's numbers, where shown, are for orientation; these say nothing about "
                "ImageNet."
            )
        return "**Not ImageNet:** the paper's numbers, where shown, are for orientation only."

    @property
    def suffix(self) -> str:
        """The end of all its file names."""
        if self.is_paper:
            return ""
        changed = f"-{crc32(repr(self.overrides).encode()):08x}" if self.overrides else ""
        return f"{'-scaled' if self.scaled else ''}-{self.data}{changed}"

    def experiment(self, name: str) -> str:
        """The file in configs/experiment/ of the experiment that tables call `name`."""
        return _SCALED + name if self.scaled else name

    def test(self, test: Test) -> Test:
        """The test as this edition does it."""
        crop = int(dict(self.overrides).get("data.crop", SCALED_CROP))
        return test.scaled(crop) if self.scaled else test

    def includes(self, run: Run) -> bool:
        """Whether a run is of this edition and does not differ from its experiment's file."""
        return run.experiment is not None and not run.changed and Edition.of(run) == self

    def model_label(self, model: str, extra_convs: int) -> str:
        """The name under which throughputs are listed: A, B+9, scaled-small30."""
        return self.experiment(model) + (f"+{extra_convs}" if extra_convs else "")


def editions(runs: Sequence[Run]) -> list[Edition]:
    """The paper's edition, and every other that has runs."""
    known = {Edition.of(run) for run in runs if run.experiment and not run.changed}
    others = sorted(known - {Edition()}, key=lambda edition: edition.suffix)
    return [Edition(), *others]


def to_json(run: Run) -> str:
    """The record of a run."""
    return json.dumps(asdict(run), separators=(",", ":")) + "\n"


def from_json(text: str) -> Run:
    """The run of a record; raises ValueError, TypeError or KeyError if it is damaged."""
    values = json.loads(text)
    values["val"] = [Validation(**line) for line in values["val"]]
    values["slopes"] = _slopes_from_json(values["slopes"])
    values["slopes_over_time"] = [
        (step, _slopes_from_json(layers)) for step, layers in values["slopes_over_time"]
    ]
    values["sessions"] = [Session(**line) for line in values["sessions"]]
    return Run(**values)


def _slopes_from_json(layers: dict[str, Any]) -> dict[str, Slopes]:
    return {layer: Slopes(**numbers) for layer, numbers in layers.items()}


def load(results: Path) -> list[Run]:
    """The recorded runs of a results folder, by name; raises UserError for a damaged record."""
    runs = []
    for path in sorted((results / "records").glob("*.json")):
        what = f"{path} is damaged or of another version"
        with refusing(ValueError, TypeError, KeyError, what=what):
            runs.append(from_json(path.read_text()))
    return runs
