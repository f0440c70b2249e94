"""What runs where: the commit that is checked out, and this process's CPUs and memory."""

import ctypes
import os
import subprocess
from pathlib import Path


def commit() -> str | None:
    """The hash of the checked-out commit, `-dirty` if files differ; None if git cannot tell."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def num_cpus() -> int:
    """This process's share of the CPUs.

    torchrun lets each process of a machine use all CPUs; srun gives each its own, and says how
    many.
    """
    allowed = len(os.sched_getaffinity(0))
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if given := os.environ.get("SLURM_CPUS_PER_TASK"):
        return min(allowed, int(given))
    if allowed * num_processes <= (os.cpu_count() or 1):  # each has its own already
        return allowed
    return max(1, allowed // num_processes)


def num_workers() -> int:
    """The default number of threads or processes that decode for this process.

    At 2 ms an image, 32 of them decode 16,000 a second, more than a GPU trains on.
    """
    return min(num_cpus(), 32)


def keep_freed_memory() -> None:
    """Make glibc's malloc keep large freed blocks for the next step.

    Otherwise it returns them to the kernel, which clears all their pages anew in every step.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no block has a mapping of its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap does not shrink
