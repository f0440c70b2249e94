"""signals.json: what a study of signal propagation measured, in one file beside its pages."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from analysis.propagation.study import Settings, Study, network_config
from analysis.propagation.theory import Floats, Signals, conv_table
from common.errors import UserError, refusing

_NAME = "signals.json"
_QUANTITIES = ("x", "y", "dx", "dy")
_DIGITS = 7  # one more than any table shows


def write_signals(study: Study, folder: Path) -> None:
    """Keep a study, rounded to seven digits; raises UserError if it cannot be written."""
    networks = [
        {"model": model, "act": act, "init": init}
        | {name: _rounded(getattr(signals, name)) for name in _QUANTITIES}
        for (model, act, init), signals in study.signals.items()
    ]
    kept = {"settings": asdict(study.settings), "torch": study.torch, "networks": networks}
    with refusing(OSError, what=f"cannot write into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _NAME).write_text(json.dumps(kept, separators=(",", ":")) + "\n")


def read_signals(folder: Path) -> Study:
    """The study of a folder; raises UserError if it is missing, damaged or of other networks."""
    path = folder / _NAME
    try:
        kept = json.loads(path.read_text())
        settings = Settings(**kept["settings"] | {"models": tuple(kept["settings"]["models"])})
        signals = {
            (network["model"], network["act"], network["init"]): Signals(
                **{name: np.array(network[name], dtype=np.float64) for name in _QUANTITIES}
            )
            for network in kept["networks"]
        }
        study = Study(settings, kept["torch"], signals)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing, damaged or of another version ({error})") from error
    _check(study, path)
    return study


def _check(study: Study, path: Path) -> None:
    """Whether every network of the settings is there, with a number for each of its layers."""
    complete = list(study.signals) == study.settings.networks()
    for key, signals in study.signals.items():
        shape = (study.settings.seeds, len(conv_table(network_config(key).model)))
        complete &= all(getattr(signals, name).shape == shape for name in _QUANTITIES)
    if not complete:
        raise UserError(f"{path} is not of the networks in configs/model/: measure them again")


def _rounded(values: Floats) -> list[list[float | None]]:
    """[seeds, L] as JSON has it: null for nan."""
    return [
        [None if np.isnan(value) else float(f"{value:.{_DIGITS}g}") for value in row]
        for row in values
    ]
