"""The committed pages are what their generators write today, byte for byte."""

import shutil
from pathlib import Path

from analysis.propagation.page import texts
from analysis.propagation.study import evaluate, read_signals
from analysis.report.report import write_report
from analysis.report.runs import load
from analysis.start.page import write_start_page
from tests.conftest import ROOT

RESULTS = ROOT / "results"


def pages(folder: Path) -> dict[str, bytes]:
    """The Markdown and CSV files of a folder."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".md", ".csv")}


def assert_same(fresh: dict[str, bytes], folder: Path, command: str) -> None:
    """No page is stale, none is missing, and none is left that nothing writes any more."""
    committed = pages(folder)
    stale = sorted(
        name for name in fresh | committed if fresh.get(name, b"") != committed.get(name, b"")
    )
    assert not stale, f"{folder}: {stale} are stale: python scripts/reproduce.py {command}"


def test_signal_propagation() -> None:
    study = read_signals(RESULTS / "analysis")
    fresh = texts(evaluate(study), study)
    encoded = {name: text.encode() for name, text in fresh.items()}
    assert_same(encoded, RESULTS / "analysis", "analysis --rewrite")


def test_tables_and_figures(tmp_path: Path) -> None:
    """From the records alone, with the page of signal propagation and any saved photographs."""
    if (RESULTS / "records").is_dir():  # there are runs
        shutil.copytree(RESULTS / "records", tmp_path / "records")
    shutil.copytree(RESULTS / "start" / "records", tmp_path / "start" / "records")
    (tmp_path / "analysis").mkdir()
    shutil.copy(RESULTS / "analysis" / "README.md", tmp_path / "analysis")
    for photographs in RESULTS.glob("fig[45]*"):
        shutil.copy(photographs, tmp_path)
    write_report(load(tmp_path), tmp_path, tmp_path / "no-runs")
    assert_same(pages(tmp_path), RESULTS, "report")


def test_first_steps(tmp_path: Path) -> None:
    shutil.copytree(RESULTS / "start" / "records", tmp_path / "records")
    write_start_page(tmp_path)
    assert_same(pages(tmp_path), RESULTS / "start", "report")
