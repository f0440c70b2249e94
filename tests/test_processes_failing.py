"""A process that fails says why and ends at once, though the others wait for it for ever."""

from pathlib import Path

import pytest
import torch

from common.errors import UserError
from engine import distributed
from tests.test_processes_leaving import pair

# Destroying an NCCL group waits for all its processes; destroying a gloo group does not.
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
    with pair(str(tmp_path / "program.py")) as (_, failing):
        stderr = failing.communicate(timeout=60)[1]
    assert failing.returncode == status
    assert stderr.endswith(told)
    assert ("Traceback" in stderr) == (told.startswith("ValueError"))


def test_a_gpu_that_torch_cannot_use_is_not_ignored(
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
