"""A process that fails says so and ends at once, while the others wait for it for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from engine import distributed
from tests.conftest import ROOT, free_port

# Destroying an NCCL group waits for all of its processes; gloo's does not.
PROGRAM = """
import time
import torch.distributed as dist
from common.errors import Stopped, UserError, one_sentence
from engine.distributed import open_world

dist.destroy_process_group = lambda: time.sleep(600)
with one_sentence(), open_world("cpu", 300) as world:
    if world.rank == 1:
        raise {error}
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        ("UserError('no room')", 1, "error: no room\n"),
        ("Stopped('saved at step 3')", 75, "saved at step 3\n"),
        ("ValueError('a defect')", 1, "ValueError: a defect\n"),
    ],
)
def test_a_failing_process_does_not_wait_for_the_others(
    error: str, status: int, told: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.format(error=error))
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = {**os.environ, **world, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "program.py")]
    waiting = subprocess.Popen(command, env={**environment, "RANK": "0"})
    try:
        done = subprocess.run(
            command, env={**environment, "RANK": "1"}, capture_output=True, text=True, timeout=60
        )
    finally:
        waiting.kill()
        waiting.wait()
    assert done.returncode == status
    assert done.stderr.endswith(told)
    assert ("Traceback" in done.stderr) == (told.startswith("ValueError"))


def test_a_gpu_that_torch_cannot_use_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(distributed, "DEV", tmp_path)
    monkeypatch.setattr(distributed, "DRIVER", tmp_path / "version")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with distributed.open_world("auto", 300) as world:  # no GPU at all
        assert world.device.type == "cpu"
    (tmp_path / "nvidia0").touch()
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module 470.82.01\n")
    with pytest.raises(UserError, match=r"a GPU with driver 470\.82\.01, but torch"):
        distributed.open_world("auto", 300).__enter__()
    with distributed.open_world("cpu", 300) as world:
        assert world.device.type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    with distributed.open_world("auto", 300) as world:
        assert world.device.type == "cpu"
