"""The CPUs that a process uses, and the memory that it keeps."""

import os

import pytest

from common.machine import num_cpus, num_workers
from tests.conftest import run_program


@pytest.mark.parametrize(
    ("cpus", "allowed", "environment", "own"),
    [
        (128, 128, {}, 128),
        (128, 6, {}, 6),
        (128, 128, {"LOCAL_WORLD_SIZE": "8"}, 16),  # torchrun
        (128, 64, {"LOCAL_WORLD_SIZE": "8"}, 8),  # on a part of a machine
        (128, 12, {"LOCAL_WORLD_SIZE": "8"}, 12),  # each process bound to CPUs of its own
        (128, 64, {"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": "16"}, 16),  # srun, not bound
        (2, 2, {"LOCAL_WORLD_SIZE": "4"}, 1),
    ],
)
def test_a_process_takes_its_share(
    cpus: int,
    allowed: int,
    environment: dict[str, str],
    own: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert num_cpus() == own
    assert num_workers() == min(own, 32)


KEEPING = """
import resource
from common.machine import keep_freed_memory
keep_freed_memory()
counts = []
for _ in range(3):
    b"x" * 2**26
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(counts[2] - counts[1])
"""


def test_freed_memory_is_used_again_without_the_kernel() -> None:
    """64 MB are 16,384 page faults if the pages are new."""
    assert int(run_program("-c", KEEPING).stdout) < 10
