"""Programs run as a user whom permissions bind, also where the tests run as root."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

_CAPABILITIES = "-dac_override,-dac_read_search"
# Permissions bind root as well once it has given up the right to pass over them.
BOUND = ["setpriv", f"--bounding-set={_CAPABILITIES}", f"--inh-caps={_CAPABILITIES}"]


def skip_unbound() -> None:
    """Skip a test where root cannot be bound."""
    if not os.geteuid() and (
        not shutil.which(BOUND[0]) or subprocess.run([*BOUND, "true"]).returncode
    ):
        pytest.skip("setpriv cannot take from root the right to read everything")


def refusal(*arguments: object) -> str:
    """What a program says that must end with one sentence and exit status 1."""
    bound = [] if os.geteuid() else BOUND
    command = [*bound, sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stdout + done.stderr
