"""What the tests share: configurations as train.py composes them, and the real programs."""

import atexit
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in the programs, before torch is loaded

import torch

from common.files import read_json_lines
from configs.schema import EvalConfig, TrainConfig
from configs.store import compose_config
from data.synthetic import make_synthetic
from tests.forks import PROGRAMS, Forks

ROOT = Path(__file__).resolve().parents[1]

# If a shell starts the tests in the background, they and their children ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A network that trains in seconds on two CPU cores: small14 with narrow fc layers, 64-pixel crops.
TINY = [
    "model=small14",
    "model.fc=[64,64]",
    "data.crop=64",
    "data.scale=[72,96]",
    "precision=fp32",
    "batch_size=16",
    "device=cpu",
    "loader.device=cpu",
]

SHORT = [*TINY, "epochs=2", "log_every=7", "checkpoint.every_steps=10"]
TIMES = ("images_per_second", "data_wait")  # what differs between two equal runs


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, except from `pytest -m gpu`: other tests run as on a machine without one."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def composed(*overrides: str, program: str = "train") -> Any:
    """The configuration of `python train.py OVERRIDES` (or eval.py)."""
    kind: type = TrainConfig if program == "train" else EvalConfig
    return compose_config(overrides, kind, program)


@cache
def fork_server() -> Forks:
    """The server that forks programs for all tests of this process."""
    server = Forks()
    atexit.register(server.close)
    return server


def _run_forked(*arguments: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        server = fork_server()
        server.start(list(arguments), out, errors=errors)
        status = server.wait()
        texts = [path.read_text(errors="backslashreplace") for path in (out, errors)]
    return subprocess.CompletedProcess(arguments, status, *texts)


def run_program(
    *arguments: str,
    cwd: Path | None = None,
    check: bool = True,
    fork: bool = True,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` from the repository's root; a non-zero exit fails the test.

    fork: whether to fork a process that has imported torch and the project, if possible.
    """
    if fork and arguments[0] in PROGRAMS and cwd is None and not environment:
        done = _run_forked(*arguments)
    else:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd or ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )
    if check and done.returncode:
        pytest.fail(f"{arguments} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty cache of scans of a user who exists only in this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rectifiers"


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, generated once for all tests."""
    root = tmp_path_factory.mktemp("data") / "synthetic"
    make_synthetic(root)
    return root


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what may differ between two equal runs."""
    lines = read_json_lines(folder / "metrics.jsonl")
    return [
        {key: value for key, value in line.items() if key not in TIMES}
        for line in lines
        if line["kind"] != "commit"
    ]


def checkpoint(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, synthetic: Path) -> Path:
    """A part of the embedded set: 200 training and 50 validation images."""
    root = tmp_path_factory.mktemp("data") / "small"
    for split, count in (("train", 20), ("val", 5)):
        for folder in sorted((synthetic / split).iterdir()):
            (root / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:count]:
                os.link(image, root / split / folder.name / image.name)
    return root


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def command(small: Path, runs: Path) -> list[str]:
    """25 steps: two epochs of 200 images in batches of 16."""
    return ["train.py", *SHORT, "data=folder", f"data.root={small}", f"runs={runs}"]


@pytest.fixture(scope="session")
def undisturbed(command: list[str], runs: Path) -> Path:
    run_program(*command, "name=undisturbed", "checkpoint.keep=1", fork=False)
    return runs / "undisturbed"


def free_port() -> int:
    """A free port, below the range (from 32768) from which Linux assigns ports to connections."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def torchrun(num_processes: int, *arguments: str, check: bool = True) -> Any:
    """Run `torchrun --nproc-per-node=NUM_PROCESSES ARGUMENTS` on a free port."""
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={num_processes}"]
    port = f"--master-port={free_port()}"
    return run_program(*launch, port, *arguments, check=check, OMP_NUM_THREADS="1")


@pytest.fixture(scope="session")
def fifty(small: Path, runs: Path) -> list[str]:
    """50 steps at the paper's rate, clipped so that rounding errors do not grow."""
    more = ["clip_norm=0.1", "epochs=4", "log_every=1", "checkpoint.every_steps=10"]
    return ["train.py", *TINY, *more, "data=folder", f"data.root={small}", f"runs={runs}"]


@pytest.fixture(scope="session")
def two(fifty: list[str], runs: Path) -> Path:
    """The run of 50 steps by two processes."""
    torchrun(2, *fifty, "name=two")
    return runs / "two"
