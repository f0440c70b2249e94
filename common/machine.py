"""What runs where: the version of the project, and the CPUs it may use."""

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
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
