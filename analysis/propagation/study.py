"""Signal propagation for every initialisation, with ReLU and PReLU: measured, saved, evaluated."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import configs
from analysis.propagation.measure import measure
from analysis.propagation.theory import Conv, Floats, Signals, borders, conv_table, pools, predict
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
ACTS, INITS = tuple(ACT_NAMES), tuple(INIT_NAMES)

_FILE = "signals.json"
_QUANTITIES = ("x", "y", "dx", "dy")
_DIGITS = 7  # in the file: one more than any table shows

Key = tuple[str, str, str]  # of a network: model, act, init


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    models: Sequence[str] = ("small14", "small30", "vgg_b", "B")
    crop: int = 224  # side of the random images, pixels
    batch: int = 2  # images of a seed
    seeds: int = 20  # seeds 0, 1, ...: each draws weights, images and gradient

    def command(self) -> str:
        """What to type to measure the same again."""
        models = " ".join(self.models)
        numbers = f"--crop {self.crop} --batch {self.batch} --seeds {self.seeds}"
        return f"python scripts/reproduce.py analysis --models {models} {numbers}"

    def networks(self) -> dict[Key, TrainConfig]:
        """Each model with each rectifier and initialisation.

        Raises UserError for an unknown model.
        """
        keys = [(model, act, init) for model in self.models for act in ACTS for init in INITS]
        return {
            key: compose_config([f"model={key[0]}", f"act={key[1]}", f"init={key[2]}"], TrainConfig)
            for key in keys
        }


@dataclass(frozen=True)
class Study:
    """Everything that was measured; the page, its table and its figures follow from it."""

    settings: Settings
    torch: str  # the version that measured
    signals: dict[Key, Signals]


@dataclass(frozen=True)
class Result:
    """One network with one initialisation.

    The first axis of arrays is the direction. All but the draws are [2, L].
    """

    model: str
    act: str
    init: str
    table: list[Conv]
    draws: Floats  # variances as measured, [2, seeds, L]
    predicted: Floats  # Eq. 9 and 13
    measured: Floats  # geometric mean over seeds
    spread: Floats  # of the seeds: the factor of one standard deviation of the logarithm
    borders: Floats  # factor by which borders change the prediction
    pools: Floats  # factor by which max-pools changed it, geometric mean
    rest_mean: Floats  # what these two leave unexplained of draws / predicted
    rest_error: Floats  # standard error of this mean


Results = dict[Key, Result]


def measure_all(settings: Settings) -> Study:
    """Measure all networks; raises UserError for an unknown model or too small a crop."""
    for name, least in (("crop", 1), ("batch", 1), ("seeds", 2)):  # one seed has no spread
        value = getattr(settings, name)
        require(value >= least, f"--{name} {value} must be at least {least}")
    known = sorted(path.stem for path in Path(configs.__file__).parent.glob("model/*.yaml"))
    for model in settings.models:
        one_of("--models", model, known)
    networks = settings.networks()
    for config in networks.values():
        with refusing(ValueError):  # before anything is measured
            describe(config.model, config.act, config.init, num_classes=1, crop=settings.crop)
    crop, batch, seeds = settings.crop, settings.batch, range(settings.seeds)
    signals = {
        key: measure(config, crop=crop, batch=batch, seeds=seeds)
        for key, config in tqdm(networks.items(), unit="network", disable=None)
    }
    return Study(settings, torch.__version__.split("+")[0], signals)


def evaluate(study: Study) -> Results:
    """Each network's measurements beside Eq. 9 and 13, and the factors that these leave out."""
    results = {}
    for key, config in study.settings.networks().items():
        model, act, init = key
        signals, slope, table = study.signals[key], config.act.slope, conv_table(config)
        edges = borders(table, study.settings.crop)
        pooled = pools(table, signals, edges, slope)
        draws, known = signals.variances(), edges.variances()
        predicted = predict(table, [conv.std for conv in table], slope)
        rest = draws / (predicted * known)[:, None] / pooled
        results[key] = Result(
            model=model,
            act=act,
            init=init,
            table=table,
            draws=draws,
            predicted=predicted,
            measured=geometric_mean(draws),
            # Products of many random factors spread evenly on a logarithmic scale.
            spread=np.exp(np.log(draws).std(axis=1, ddof=1)),
            borders=known,
            pools=geometric_mean(pooled),
            rest_mean=rest.mean(axis=1),
            rest_error=rest.std(axis=1, ddof=1) / np.sqrt(study.settings.seeds),
        )
    return results


def geometric_mean(values: Floats) -> Floats:
    """Over seeds: [2, seeds, L] -> [2, L]."""
    return np.asarray(np.exp(np.log(values).mean(axis=1)))


def write_signals(study: Study, folder: Path) -> None:
    """Write signals.json, rounded to seven digits; raises UserError if it cannot be written."""
    networks = [
        {"model": model, "act": act, "init": init}
        | {name: _rounded(getattr(signals, name)) for name in _QUANTITIES}
        for (model, act, init), signals in study.signals.items()
    ]
    content = {"settings": asdict(study.settings), "torch": study.torch, "networks": networks}
    with refusing(OSError, what=f"cannot write into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FILE).write_text(json.dumps(content, separators=(",", ":")) + "\n")


def _rounded(values: Floats) -> list[list[float | None]]:
    """[seeds, L] as JSON has it: null for nan."""
    return [
        [None if np.isnan(value) else float(f"{value:.{_DIGITS}g}") for value in row]
        for row in values
    ]


def read_signals(folder: Path) -> Study:
    """The study of a folder; raises UserError if it is missing, damaged or of other networks."""
    path = folder / _FILE
    try:
        content = json.loads(path.read_text())
        settings, version = Settings(**content["settings"]), content["torch"]
        signals = {}
        for network in content["networks"]:
            rows = np.array([network[name] for name in _QUANTITIES], dtype=np.float64)
            signals[network["model"], network["act"], network["init"]] = Signals(*rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing, damaged or of another version ({error})") from error
    expected = {
        key: (settings.seeds, len(conv_table(config)))
        for key, config in settings.networks().items()
    }
    if {key: each.x.shape for key, each in signals.items()} != expected:
        raise UserError(f"{path} is not of the networks in configs/model/: measure them again")
    return Study(settings, version, signals)
