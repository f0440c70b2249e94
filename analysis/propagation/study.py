"""Eq. 9 and 13 beside measurements, for every rule of initialisation, ReLU and PReLU."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import configs
from analysis.propagation.theory import (
    Conv,
    Curves,
    Floats,
    Signals,
    borders,
    conv_table,
    measure,
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

Key = tuple[str, str, str]  # model, act, init


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    models: Sequence[str] = ("small14", "small30", "vgg_b", "B")
    crop: int = 224  # side of the random images, pixels
    batch: int = 2  # images of a seed
    seeds: int = 20  # seeds 0, 1, ...: each draws weights, images and gradient

    def command(self) -> str:
        """What to type to get the same again."""
        models = " ".join(self.models)
        numbers = f"--crop {self.crop} --batch {self.batch} --seeds {self.seeds}"
        return f"python scripts/reproduce.py analysis --models {models} {numbers}"

    def networks(self) -> list[Key]:
        """Every network: each model with each rectifier and initialisation."""
        return [(m, a, i) for m in dict.fromkeys(self.models) for a in ACTS for i in INITS]


@dataclass(frozen=True)
class Study:
    """Everything that was measured; tables, figures and pages follow from it."""

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
    stds: list[float]  # of each layer's weights, as the project initialises them
    predicted: Curves  # [L]
    measured: Curves  # [seeds, L]
    borders: Curves  # factors, [L]
    pools: Curves  # factors, [seeds, L]
    rest: Curves = field(init=False)  # measured / (predicted * borders * pools), [seeds, L]

    def __post_init__(self) -> None:
        parts = (self.measured, self.predicted, self.borders, self.pools)
        rest = [m[d] / (p[d] * b[d] * q[d]) for d in DIRECTIONS for m, p, b, q in [parts]]
        object.__setattr__(self, "rest", Curves(*rest))

    def ratio(self, direction: str) -> Floats:
        """Measured / predicted, [seeds, L]."""
        return np.asarray(self.measured[direction] / self.predicted[direction])


Results = dict[Key, Result]


def typical(values: Floats) -> Floats:
    """[seeds, L] -> geometric mean over seeds [L]."""
    return np.asarray(np.exp(np.log(values).mean(axis=0)))


def spread(values: Floats) -> Floats:
    """[seeds, L] -> [L]: the factor that is one standard deviation of the logarithm; nan for one.

    Products of many random factors spread evenly on a logarithmic scale.
    """
    if len(values) < 2:
        return np.full(values.shape[1], np.nan)
    return np.asarray(np.exp(np.log(values).std(axis=0, ddof=1)))


def standard_error(values: Floats) -> Floats:
    """[seeds, L] -> [L]: of the arithmetic mean over seeds; nan for one seed."""
    if len(values) < 2:
        return np.full(values.shape[1], np.nan)
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(len(values)))


def with_spread(values: Floats, layer: int) -> str:
    """One layer of [seeds, L] for a table: the geometric mean and, of several seeds, the spread."""
    middle, factor = typical(values)[layer], spread(values)[layer]
    return f"{middle:.3g}" if np.isnan(factor) else f"{middle:.3g} ×/÷ {factor:.2f}"


def study(settings: Settings) -> Study:
    """Measure all networks; raises UserError for an unknown model or too small a crop."""
    for name in ("crop", "batch", "seeds"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} {getattr(settings, name)} must be at least 1")
    known = sorted(path.stem for path in Path(configs.__file__).parent.glob("model/*.yaml"))
    for model in settings.models:
        one_of("--models", model, known)
    composed = {key: network_config(key) for key in settings.networks()}
    for config in composed.values():
        _conv_stds(config, settings.crop)  # refuses before anything is measured
    seeds, signals = range(settings.seeds), {}
    with tqdm(total=len(composed) * settings.seeds, unit="pass", disable=None) as bar:
        for key, config in composed.items():
            bar.set_description(" ".join(key))
            crop, batch = settings.crop, settings.batch
            signals[key] = measure(
                config.model, config.act, config.init, crop, batch, seeds, bar.update
            )
    return Study(settings, torch.__version__.split("+")[0], signals)


def evaluate(measured: Study) -> Results:
    """Each network's measurements beside Eq. 9 and 13, and the factors that these leave out."""
    crop = measured.settings.crop
    return {key: _result(network_config(key), crop, s) for key, s in measured.signals.items()}


def network_config(key: Key) -> TrainConfig:
    """The configuration of a network; raises UserError where a part of it is unknown."""
    model, act, init = key
    return compose_config([f"model={model}", f"act={act}", f"init={init}"], TrainConfig)


def _conv_stds(config: TrainConfig, crop: int) -> list[float]:
    with refusing(ValueError):
        layers = describe(config.model, config.act, config.init, 1, crop).layers
    return [layer.std for layer in layers if layer.kind == "conv" and layer.std is not None]


def _result(config: TrainConfig, crop: int, signals: Signals) -> Result:
    table, stds = conv_table(config.model), _conv_stds(config, crop)
    shares, slope = borders(table, crop), config.act.slope
    return Result(
        model=config.model.name,
        act=config.act.name,
        init=config.init.name,
        slope=slope,
        table=table,
        stds=stds,
        predicted=predict(table, stds, slope),
        measured=signals.curves(),
        borders=shares.curves(),
        pools=pools(table, signals, shares, slope),
    )
