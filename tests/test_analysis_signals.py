"""The file that keeps the measurements of signal propagation."""

import json
from pathlib import Path

import pytest

from analysis.propagation.study import read_signals
from common.errors import UserError


@pytest.mark.parametrize("damage", ["missing", "cut", "another model", "another layer"])
def test_damaged_measurements_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "signals.json"
    row = [[1.0] * 11]  # one seed of small14
    network = {"model": "small14", "x": row, "y": row, "dx": row, "dy": row}
    inits = ("he_forward", "he", "xavier", "gaussian")
    kept = {
        "settings": {"models": ["small14"], "crop": 64, "batch": 1, "seeds": 1},
        "torch": "2",
        "networks": [network | {"act": a, "init": i} for a in ("relu", "prelu") for i in inits],
    }
    path.write_text(json.dumps(kept))
    read_signals(tmp_path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_text(path.read_text()[:-5])
    elif damage == "another model":
        path.write_text(path.read_text().replace("small14", "small30"))
    else:
        path.write_text(path.read_text().replace("[1.0, 1.0,", "[1.0,", 1))
    with pytest.raises(UserError, match=r"signals\.json is"):
        read_signals(tmp_path)
