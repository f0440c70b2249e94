"""The study of signal propagation: each initialisation with ReLU and PReLU, on full networks."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import configs
from analysis.propagation.measure import measure, pools
from analysis.propagation.theory import Conv, Floats, Signals, borders, conv_table, predict
from common.errors import UserError, refusing
from configs.schema import TrainConfig
from configs.store import compose_config
from configs.validate import one_of, require
from models.describe import describe

INIT_NAMES = {
    "he_forward": "He forward, Eq. 10",
    "he": "He backward, Eq. 14",
    "xavier": "Xavier, 1/n",
    "gaussian": "std 0.01",
}
ACT_NAMES = {"relu": "ReLU", "prelu": "PReLU, a = 0.25"}

_FILE = "signals.json"


class Network(NamedTuple):
    """A model with a rectifier and an initialisation, named as in configs/."""

    model: str
    act: str
    init: str

    def config(self) -> TrainConfig:
        """Its configuration for training."""
        overrides = [f"{key}={choice}" for key, choice in self._asdict().items()]
        return compose_config(overrides, TrainConfig)


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    models: Sequence[str] = ("small14", "small30", "vgg_b", "B")
    crop: int = 224  # side of the random images, pixels
    batch: int = 2  # images for each seed
    seeds: int = 20  # seeds 0, 1, ...: each draws weights, images and gradient

    def networks(self) -> list[Network]:
        """Each model with each rectifier and initialisation."""
        return [Network(*names) for names in product(self.models, ACT_NAMES, INIT_NAMES)]


@dataclass(frozen=True)
class Study:
    """Everything that was measured; the page, its table and its figures follow from it."""

    settings: Settings
    torch: str  # the version that measured
    signals: dict[Network, Signals]


@dataclass(frozen=True)
class Result:
    """One network's variances and what explains them.

    The first axis of arrays is the direction. All but the draws are [2, L].
    """

    table: list[Conv]
    draws: Floats  # variances as measured, [2, seeds, L]
    predicted: Floats  # by Eq. 9 and 13
    measured: Floats  # geometric mean over seeds
    spread: Floats  # over seeds: the factor of one standard deviation of the logarithm
    borders: Floats  # factor by which borders change the prediction
    pools: Floats  # factor by which max-pools changed it, geometric mean over seeds
    rest_mean: Floats  # what these two leave unexplained of draws / predicted
    rest_error: Floats  # standard error of this mean


Results = dict[Network, Result]


def measure_all(settings: Settings) -> Study:
    """Measure all networks; raises UserError for an unknown model or too small a crop."""
    for name, least in (("crop", 1), ("batch", 1), ("seeds", 2)):  # one seed has no spread
        value = getattr(settings, name)
        require(value >= least, f"--{name} {value} must be at least {least}")
    known = sorted(path.stem for path in Path(configs.__file__).parent.glob("model/*.yaml"))
    for model in settings.models:
        one_of("--models", model, known)
    networks = {network: network.config() for network in settings.networks()}
    for config in networks.values():
        with refusing(ValueError):  # too small a crop, before anything is measured
            describe(config.model, config.act, config.init, num_classes=1, crop=settings.crop)
    crop, batch, seeds = settings.crop, settings.batch, range(settings.seeds)
    signals = {
        network: measure(config, crop=crop, batch=batch, seeds=seeds)
        for network, config in tqdm(networks.items(), unit="network", disable=None)
    }
    return Study(settings, torch.__version__.split("+")[0], signals)


def evaluate(study: Study) -> Results:
    """Each network's measurements beside Eq. 9 and 13, and the factors that they leave out."""
    return {
        network: _evaluate(network.config(), signals, study.settings.crop)
        for network, signals in study.signals.items()
    }


def _evaluate(config: TrainConfig, signals: Signals, crop: int) -> Result:
    table, slope = conv_table(config), config.act.slope
    at_borders = borders(table, crop)
    pooled = pools(table, signals, at_borders, slope)
    draws, predicted = signals.variances(), predict(table, slope)
    rest = draws / (predicted * at_borders.variances())[:, None] / pooled
    # Products of many random factors spread evenly on a logarithmic scale.
    log_draws = np.log(draws)
    return Result(
        table=table,
        draws=draws,
        predicted=predicted,
        measured=np.exp(log_draws.mean(axis=1)),
        spread=np.exp(log_draws.std(axis=1, ddof=1)),
        borders=at_borders.variances(),
        pools=np.exp(np.log(pooled).mean(axis=1)),
        rest_mean=rest.mean(axis=1),
        rest_error=rest.std(axis=1, ddof=1) / np.sqrt(draws.shape[1]),
    )


def write_signals(study: Study, folder: Path) -> None:
    """Write signals.json; raises UserError if it cannot be written."""
    networks = [network._asdict() | _rounded(signals) for network, signals in study.signals.items()]
    content = {"settings": asdict(study.settings), "torch": study.torch, "networks": networks}
    text = json.dumps(content, separators=(",", ":")).replace("NaN", "null")  # as JSON has it
    with refusing(OSError, what=f"cannot write into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FILE).write_text(text + "\n")


def _rounded(signals: Signals) -> dict[str, list[list[float]]]:
    """Mean squares by name, with seven digits: one more than any table shows."""
    return {
        name: np.char.mod("%.7g", values).astype(float).tolist()
        for name, values in vars(signals).items()
    }


def read_signals(folder: Path) -> Study:
    """The study in signals.json; raises UserError if it is missing, damaged or outdated."""
    path = folder / _FILE
    try:
        content = json.loads(path.read_text())
        settings, version = Settings(**content["settings"]), content["torch"]
        signals = {}
        for row in content["networks"]:
            network = Network(row["model"], row["act"], row["init"])
            squares = np.array([row[name] for name in ("x", "y", "dx", "dy")], dtype=np.float64)
            signals[network] = Signals(*squares)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing, damaged or of another version ({error})") from error
    expected = {
        network: (settings.seeds, len(conv_table(network.config())))
        for network in settings.networks()
    }
    if {network: measured.x.shape for network, measured in signals.items()} != expected:
        raise UserError(f"{path} is not of the networks in configs/model/: measure them again")
    return Study(settings, version, signals)
