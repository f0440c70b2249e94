"""What the study of the first steps measures, one JSON file for each network and recipe."""

import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from analysis.start.remedies import REMEDIES
from common.errors import UserError, refusing


@dataclass(frozen=True)
class Case:
    """A network and its recipe."""

    model: str
    act: str
    init: str
    remedy: str  # key of REMEDIES
    seed: int
    data: str  # name of the data set's folder
    num_classes: int
    num_images: int
    crop: int  # pixels
    scale: list[int]  # lowest and highest shorter side, pixels
    batch_size: int
    precision: str
    overrides: list[str] = field(default_factory=list)  # further keys of train.py
    rate: float = 0.01  # of the recipe, before the remedy
    momentum: float = 0.9
    width: int = 4096  # units of fc2
    clip_norm: float | None = None  # largest norm of the whole gradient

    @property
    def network(self) -> tuple[str, str, str]:
        """Model, initialisation and rectifier."""
        return self.model, self.init, self.act

    @property
    def name(self) -> str:
        """Of its file, without .json."""
        return "-".join(
            [self.model, self.act, self.init, self.remedy, self.setting, f"seed{self.seed}"]
        )

    @property
    def setting(self) -> str:
        """Images and keys, for file names."""
        changed = [re.sub("[^A-Za-z0-9.]+", "-", key).strip("-") for key in self.overrides]
        return "-".join([self.data, *changed])


@dataclass
class Layer:
    """A layer at one step: its features of the batch, and its weights before the update."""

    name: str
    rms: float  # root mean square of the features behind the rectifier; fc3: of the logits
    dead: float  # fraction of the channels (fc: units) that are positive nowhere in the batch
    common: float  # fraction of the features' energy that all images share
    weight: float  # Euclidean norm of the weights
    gradient: float  # Euclidean norm of their gradient, before clipping
    update: float  # Euclidean norm of what the step adds to them


@dataclass
class Probe:
    """All layers at one step."""

    step: int  # from 1
    layers: list[Layer]


@dataclass
class Curvature:
    """Curvature of the loss on some images of a batch, before a step."""

    step: int
    images: int
    along_gradient: float  # g'Hg / g'g
    largest: float  # eigenvalue by power iteration, a lower bound


@dataclass
class Record:
    """The first steps of a network."""

    case: Case
    asked: int  # steps to do
    losses: list[float] = field(default_factory=list)  # of each step; ends early where it diverges
    norms: list[float] = field(default_factory=list)  # of the whole gradient, before clipping
    second: float | None = None  # loss of step 2, by measure.predicted_second
    probes: list[Probe] = field(default_factory=list)
    curvature: list[Curvature] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether it was stopped before its last step, as the loss does not come back."""
        return len(self.losses) < self.asked

    @property
    def highest(self) -> float:
        """The highest loss after step 1, which no update precedes."""
        later = [loss if math.isfinite(loss) else math.inf for loss in self.losses[1:]]
        return max(later, default=math.nan)

    def layer(self, name: str, probe: int) -> Layer:
        """A layer at a probe."""
        return next(layer for layer in self.probes[probe].layers if layer.name == name)

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 1, times the factor by which clipping scales."""
        rate = self.case.rate * REMEDIES[self.case.remedy].rate_factor(step)
        return rate * self.clip_factor(step)

    def clip_factor(self, step: int) -> float:
        """The factor by which clipping scales the gradient of a step, from 1."""
        limit = self.case.clip_norm
        return 1.0 if limit is None else min(1.0, limit / self.norms[step - 1])

    def kernel(self, probe: int) -> float:
        """Mean inner product k of two images' features of fc2, which dropout does not change.

        The update from one image moves the logits of another by the rate times k times p - y of
        the former, over the batch size.
        """
        fc2 = self.layer("fc2", probe)
        return fc2.common * fc2.rms**2 * self.case.width

    def noise(self, probe: int) -> float:
        """Variance at which the noise of the labels settles in the logits that all images share.

        For one of K classes the curvature is k p, and its gradient k (p - n/B), where n of the B
        labels of a batch are of the class, has the variance k^2 p / B. SGD with momentum mu then
        settles at rate * k / (2 (1 - mu) B), whatever K is.
        """
        case, step = self.case, self.probes[probe].step
        return self.rate(step) * self.kernel(probe) / (2 * (1 - case.momentum) * case.batch_size)

    @property
    def features(self) -> list[str]:
        """All layers but fc3, which has logits."""
        return [layer.name for layer in self.probes[0].layers if layer.name != "fc3"]


def write_record(record: Record, folder: Path) -> None:
    """Write a record; raises UserError if it cannot be written."""
    with refusing(OSError, what=f"cannot write into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_rounded(asdict(record)), separators=(",", ":"))
        (folder / f"{record.case.name}.json").write_text(text + "\n")


def read_records(folder: Path) -> list[Record]:
    """All records, by name; raises UserError for one that is damaged or of another version."""
    return [read_record(path) for path in sorted(folder.glob("*.json"))]


def read_record(path: Path) -> Record:
    """One record; raises UserError if it is damaged or of another version."""
    try:
        values = json.loads(path.read_text())
        values["case"] = Case(**values["case"])
        values["probes"] = [
            Probe(probe["step"], [Layer(**layer) for layer in probe["layers"]])
            for probe in values["probes"]
        ]
        values["curvature"] = [Curvature(**numbers) for numbers in values["curvature"]]
        return Record(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or of another version ({error})") from error


def _rounded(value: object) -> object:
    """The value with all floats rounded to five digits."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
