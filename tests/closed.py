"""Runs programs under file permissions, even where the tests run as root."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

_CAPABILITIES = "-dac_override,-dac_read_search"
# Without these capabilities, permissions hold for root as well.
BOUND = ["setpriv", f"--bounding-set={_CAPABILITIES}", f"--inh-caps={_CAPABILITIES}"]


def skip_unbound() -> None:
    """Skip the test where root's rights cannot be dropped."""
    if not os.geteuid() and (
        not shutil.which(BOUND[0]) or subprocess.run([*BOUND, "true"]).returncode
    ):
        pytest.skip("setpriv cannot take away root's right to read everything")


def refusal(*arguments: object) -> str:
    """The output of a program that must fail with status 1 and one sentence on stderr."""
    bound = [] if os.geteuid() else BOUND
    command = [*bound, sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stdout + done.stderr
