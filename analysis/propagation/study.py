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
from analysis.propagation.theory import (
    Conv,
    Curves,
    Floats,
    Signals,
    borders,
    conv_table,
    pools,
    predict,
)
from common.errors import UserError, refusing
from configs.schema import TrainConfig
from configs.store import compose_config
from configs.validate import one_of
from models.describe import describe

INIT_NAMES = {
    "he_forward": "He forward, Eq. 10",
    "he": "He backward, Eq. 14",
    "xavier": "Xavier, 1/n",
    "gaussian": "std 0.01",
}
ACT_NAMES = {"relu": "ReLU", "prelu": "PReLU, a = 0.25"}
ACTS, INITS = tuple(ACT_NAMES), tuple(INIT_NAMES)
DIRECTIONS = ("forward", "backward")

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
        return {
            (model, act, init): compose_config(
                [f"model={model}", f"act={act}", f"init={init}"], TrainConfig
            )
            for model in self.models
            for act in ACTS
            for init in INITS
        }


@dataclass(frozen=True)
class Study:
    """Everything that was measured; the page, its table and its figures follow from it."""

    settings: Settings
    torch: str  # the version that measured
    signals: dict[Key, Signals]


@dataclass(frozen=True)
class Result:
    """One network with one initialisation."""

    model: str
    act: str
    init: str
    slope: float
    table: list[Conv]
    stds: list[float]  # of each layer's weights
    predicted: Curves  # [L]
    measured: Curves  # [seeds, L]
    borders: Curves  # factors, [L]
    pools: Curves  # factors, [seeds, L]

    def ratio(self, direction: str) -> Floats:
        """Measured / predicted, [seeds, L]."""
        return np.asarray(self.measured[direction] / self.predicted[direction])

    def rest(self, direction: str) -> Floats:
        """What borders and max-pools leave unexplained of the ratio, [seeds, L]."""
        known = self.borders[direction] * self.pools[direction]
        return np.asarray(self.ratio(direction) / known)


Results = dict[Key, Result]


def typical(values: Floats) -> Floats:
    """[seeds, L] -> geometric mean over seeds [L]."""
    return np.asarray(np.exp(np.log(values).mean(axis=0)))


def spread(values: Floats) -> Floats:
    """[seeds, L] -> [L]: the factor that is one standard deviation of the logarithm; nan for one.

    Products of many random factors spread evenly on a logarithmic scale.
    """
    return np.asarray(np.exp(_std(np.log(values))))


def standard_error(values: Floats) -> Floats:
    """[seeds, L] -> [L]: of the arithmetic mean over seeds; nan for one seed."""
    return np.asarray(_std(values) / np.sqrt(len(values)))


def _std(values: Floats) -> Floats:
    if len(values) < 2:
        return np.full(values.shape[1], np.nan)
    return np.asarray(values.std(axis=0, ddof=1))


def measure_all(settings: Settings) -> Study:
    """Measure all networks; raises UserError for an unknown model or too small a crop."""
    for name in ("crop", "batch", "seeds"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} {getattr(settings, name)} must be at least 1")
    known = sorted(path.stem for path in Path(configs.__file__).parent.glob("model/*.yaml"))
    for model in settings.models:
        one_of("--models", model, known)
    networks = settings.networks()
    for config in networks.values():
        _conv_stds(config, settings.crop)  # refuses before anything is measured
    signals = {}
    with tqdm(total=len(networks) * settings.seeds, unit="pass", disable=None) as bar:
        for key, config in networks.items():
            bar.set_description(" ".join(key))
            signals[key] = measure(
                config,
                crop=settings.crop,
                batch=settings.batch,
                seeds=range(settings.seeds),
                on_seed=bar.update,
            )
    return Study(settings, torch.__version__.split("+")[0], signals)


def _conv_stds(config: TrainConfig, crop: int) -> list[float]:
    with refusing(ValueError):
        layers = describe(config.model, config.act, config.init, 1, crop).layers
    return [layer.std for layer in layers if layer.kind == "conv" and layer.std is not None]


def evaluate(study: Study) -> Results:
    """Each network's measurements beside Eq. 9 and 13, and the factors that these leave out."""
    crop, results = study.settings.crop, {}
    for (model, act, init), config in study.settings.networks().items():
        signals, slope = study.signals[model, act, init], config.act.slope
        table, stds = conv_table(config.model), _conv_stds(config, crop)
        edges = borders(table, crop)
        results[model, act, init] = Result(
            model=model,
            act=act,
            init=init,
            slope=slope,
            table=table,
            stds=stds,
            predicted=predict(table, stds, slope),
            measured=signals.curves(),
            borders=edges.curves(),
            pools=pools(table, signals, edges, slope),
        )
    return results


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
        models = tuple(content["settings"]["models"])
        settings = Settings(**content["settings"] | {"models": models})
        signals = {
            (network["model"], network["act"], network["init"]): Signals(
                **{name: np.array(network[name], dtype=np.float64) for name in _QUANTITIES}
            )
            for network in content["networks"]
        }
        version = content["torch"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing, damaged or of another version ({error})") from error
    shapes = {
        key: {getattr(each, name).shape for name in _QUANTITIES} for key, each in signals.items()
    }
    expected = {
        key: {(settings.seeds, len(conv_table(config.model)))}
        for key, config in settings.networks().items()
    }
    if shapes != expected:
        raise UserError(f"{path} is not of the networks in configs/model/: measure them again")
    return Study(settings, version, signals)
