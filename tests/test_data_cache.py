"""The list of images: if several processes need it at once, one of them makes it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.sources.cache import scan_once
from data.sources.index import open_dataset
from tests.conftest import ROOT, composed
from tests.tars import write_official

STATE = {"stamps": np.array([[1, 0, 2]])}  # last changed long ago

# Scans slowly, and says when it begins; prints what it got and whether it waited for it.
SLOW = """
import sys, time
from pathlib import Path
import numpy as np
from data.sources.cache import scan_once
calls = []
def scan():
    print("scans", flush=True)
    time.sleep(float(sys.argv[2]))
    return {"value": np.array([int(sys.argv[3])])}
state = {"stamps": np.array([[1, 0, 2]])}
arrays = scan_once(Path(sys.argv[1]), state, scan=scan, on_progress=lambda: calls.append(1))
print("got", *arrays["value"], "waited" if len(calls) > 3 else "at once", flush=True)
"""


pytestmark = pytest.mark.usefixtures("cache")


def start(source: Path, seconds: float, value: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(source), str(seconds), str(value)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_one_process_scans_and_the_other_waits(tmp_path: Path) -> None:
    with start(tmp_path, 4, 7) as first:
        assert first.stdout
        assert first.stdout.readline() == "scans\n"
        with start(tmp_path, 0, 8) as second:
            output = second.communicate(timeout=60)[0]
        assert first.communicate(timeout=60)[0] == "got 7 at once\n"
    assert output == "got 7 waited\n"


def test_a_killed_scan_is_taken_over(tmp_path: Path) -> None:
    with start(tmp_path, 300, 7) as first:
        assert first.stdout
        assert first.stdout.readline() == "scans\n"
        with start(tmp_path, 0, 8) as second:
            time.sleep(1)
            first.send_signal(signal.SIGKILL)
            assert "scans\ngot 8 " in second.communicate(timeout=60)[0]


def test_without_a_cache_folder_each_process_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    calls: list[int] = []

    def scan() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"value": np.array(len(calls))}

    for n in (1, 2):
        arrays = scan_once(tmp_path, STATE, scan=scan, on_progress=lambda: None)
        assert arrays["value"] == n


@pytest.mark.parametrize("layout", ["folders", "tars"])
def test_a_long_first_scan_reports_progress(
    layout: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the watchdog would take the process for one that hangs."""
    root, classes = small, 10
    if layout == "tars":
        official = write_official(tmp_path / "official")
        root, classes = official.root, len(official.classes)
    data = composed("data=folder", f"data.root={root}").data
    calls: list[int] = []
    open_dataset(data, lambda: calls.append(1))
    assert len(calls) >= classes
