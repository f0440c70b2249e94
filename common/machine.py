"""What runs where: the version of the project, and the CPUs it may use."""

import ctypes
import os
import subprocess
from pathlib import Path


def commit() -> str | None:
    """The checked-out commit's hash, `-dirty` if files differ; None where git cannot tell."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def num_cpus() -> int:
    """This process's share of the CPUs, of those that it and its neighbours of a job may use.

    torchrun lets every process use all of them; srun gives each its own, and says how many.
    """
    allowed, neighbours = len(os.sched_getaffinity(0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if given := os.environ.get("SLURM_CPUS_PER_TASK"):
        return min(allowed, int(given))
    if allowed * neighbours <= (os.cpu_count() or 1):  # each has its own already
        return allowed
    return max(1, allowed // neighbours)


def num_workers() -> int:
    """Threads or processes that decode for this process, where nobody says how many.

    At 2 ms an image 32 decode 16,000 a second, which is more than a GPU trains on.
    """
    return min(num_cpus(), 32)


def keep_freed_memory() -> None:
    """Have malloc keep large freed blocks for the next step, where malloc is glibc's.

    It returns them to the kernel otherwise, which clears all their pages anew in every step.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block has a mapping of its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap does not shrink
