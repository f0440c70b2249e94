"""What the tests share: configurations composed as train.py does, and the real programs run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the programs do, before torch is there

from configs.schema import EvalConfig, TrainConfig
from configs.store import compose_config
from data.synthetic import make_synthetic

ROOT = Path(__file__).resolve().parents[1]

# A network that trains on two CPU cores in no time: small14 with narrow fc layers, 64 pixel crops.
TINY = [
    "model=small14",
    "model.fc=[64,64]",
    "data.crop=64",
    "data.scale=[72,96]",
    "precision=fp32",
    "batch_size=16",
]


def composed(*overrides: str, program: str = "train") -> Any:
    """The configuration of `python train.py OVERRIDES` (or eval.py)."""
    kind: type = TrainConfig if program == "train" else EvalConfig
    return compose_config(overrides, kind, program)


def run_program(
    *arguments: str, cwd: Path | None = None, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` from the repository's root; fails the test on a non-zero exit."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd or ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if check and done.returncode:
        pytest.fail(f"{arguments} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, generated once for all tests."""
    root = tmp_path_factory.mktemp("data") / "synthetic"
    make_synthetic(root)
    return root
