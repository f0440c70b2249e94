"""The report on made-up runs: each stands in the right table, with the numbers of its files."""

import csv
import json
import os
import re
import shutil
import time
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analysis.report.figures import draw_slopes_over_time
from analysis.report.paper import DENSE, ENSEMBLE_MEMBERS, SLOPES, TABLE4, TEN
from analysis.report.read import collect, read_run
from analysis.report.report import write_report
from analysis.report.runs import Edition, load
from analysis.report.selection import EditionRuns, find_result
from common.errors import UserError
from common.files import read_json_lines
from engine.log import Log
from models.learned import filter_grid
from tests.conftest import checkpoint
from tests.fake_runs import (
    add_gradients,
    add_slopes,
    class_rows,
    make_ensemble,
    make_result,
    make_run,
)

# Wrong images of a test for Table 4, top-1 and top-5, by scale; None: combined.
WRONG: dict[int | None, tuple[int, int]] = {
    256: (13120, 4125),
    384: (12400, 3600),
    480: (12700, 3800),
    None: (12010, 3250),
}


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def reported(runs: Path, results: Path) -> str:
    """The page of a report on these runs."""
    return write_report(collect(runs, results), results, runs).read_text()


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ and results/ of a half-finished reproduction in which some things went wrong."""
    folder = tmp_path_factory.mktemp("reproduction")
    runs = folder / "runs"
    for seed in (0, 1, 2):  # Table 4: three seeds of PReLU, one of ReLU
        run = make_run(runs, "a-prelu", seed=seed)
        make_result(run, DENSE, {s: (a - 300 * seed, b) for s, (a, b) in WRONG.items()})
    run = make_run(runs, "a-relu")
    make_result(run, DENSE, WRONG, per_class=class_rows(1, 8))
    make_ensemble(runs, DENSE, (10_000, 2_500), per_class=class_rows(2, 5))
    # Table 2: one run is partial and tested, one partial, one finished but not tested, one missing.
    run = make_run(runs, "small14-relu", done=12)
    make_result(run, TEN, {256: (20_000, 8_000), None: (20_000, 8_000)})
    run = make_run(runs, "small14-prelu", done=3, slope=0.6)
    add_slopes(run, {10_009: 0.3, 30_027: 0.6})
    make_run(runs, "small14-prelu-shared", slope=0.7)
    # One run differs from its experiment's file, and one is on another data set.
    run = make_run(runs, "small14-lrelu", "batch_size=64", "name=odd")
    make_result(run, TEN, {256: (5_000, 500), None: (5_000, 500)})
    make_run(runs, "fig2-he", "data=folder", "data.root=/elsewhere/birds")
    for seed in (0, 1):
        for init, error, norm in (("he", 70.0, 1.0), ("xavier", 99.9, 1e-6)):
            run = make_run(runs, f"fig3-{init}", seed=seed, curve=(99.9, error + seed / 100))
            add_gradients(run, {"conv1": (norm, norm / 2), "fc1": (2 * norm, norm)}, 90_000)
    for act, wrong in (("relu", 1500), ("prelu", 1400)):
        run = make_run(runs, f"scaled-small14-{act}", "data=synthetic", "data.crop=64")
        make_result(run, TEN.scaled(64), {73: (wrong, 500), None: (wrong, 500)}, images=2000)
    reported(runs, folder / "results")
    return folder


@pytest.fixture(scope="module")
def results(reproduction: Path) -> Path:
    return reproduction / "results"


def test_a_run_without_a_checkpoint_has_no_slopes_to_draw(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "small14-prelu-shared", done=1)
    run = make_run(tmp_path / "runs", "small14-prelu", done=1)
    (run / "checkpoints" / "last.pt").unlink()
    reported(tmp_path / "runs", tmp_path / "results")
    assert (tmp_path / "results" / "table1.png").is_file()


def test_a_table_has_the_numbers_of_the_result_files(reproduction: Path, results: Path) -> None:
    rows = rows_of(results / "table4.csv")
    assert len(rows) == 2 * len(TABLE4.rows)
    runs = {"ReLU": ["a-relu-imagenet-seed0"]}
    runs["PReLU"] = [f"a-prelu-imagenet-seed{seed}" for seed in (0, 1, 2)]
    for row in rows:
        entries = []
        for name in runs[row["activation"]]:
            result = json.loads((reproduction / "runs" / name / "result-dense.json").read_text())
            by_scale = {str(entry["scale"]): entry for entry in result["scales"]}
            entries.append({**by_scale, "multi-scale": result["combined"]}[row["scale"]])
        mean = sum(entry[f"{row['error']}_error"] for entry in entries) / len(entries)
        low = sum(entry[f"{row['error']}_interval"][0] for entry in entries) / len(entries)
        assert float(row["ours"]) == pytest.approx(mean, abs=1e-12)
        assert float(row["interval_low"]) == pytest.approx(low, abs=1e-12)
        assert float(row["difference"]) == pytest.approx(mean - float(row["paper"]), abs=1e-9)
        assert row["runs"].split() == runs[row["activation"]]
        assert row["images"] == "50000"
        assert row["state"] == "finished"
        assert row["commit"] == "c" * 40


def test_a_spread_needs_several_seeds(results: Path) -> None:
    rows = rows_of(results / "table4.csv")
    top1 = {(r["scale"], r["activation"]): r for r in rows if r["error"] == "top1"}
    # 12010, 11710, 11410 of 50,000 wrong: 24.02, 23.42, 22.82 %.
    assert float(top1["multi-scale", "PReLU"]["spread"]) == pytest.approx(0.6)
    assert top1["multi-scale", "ReLU"]["spread"] == ""
    text = (results / "table4.md").read_text()
    assert "23.42 ± 0.60 / 6.50 ± 0.00" in text
    assert "| 0, 1, 2 |" in text


def test_missing_partial_and_untested_runs_are_marked(results: Path) -> None:
    table = (results / "table2.md").read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
    assert "40.00 / 16.00 (partial: 12 of 75 epochs)" in lines["ReLU"]
    assert "| partial: 3 of 75 epochs, not tested |" in lines["PReLU, channel-wise"]
    assert "| not tested |" in lines["PReLU, channel-shared"]
    assert "| not run |" in lines["Leaky ReLU, a = 0.01"]
    rows = rows_of(results / "table2.csv")
    states = {row["activation"]: row["state"] for row in rows}
    assert states["ReLU"] == "partial: 12 of 75 epochs"
    assert [row["ours"] for row in rows if row["activation"] != "ReLU"] == [""] * 6


def test_a_run_that_differs_from_its_experiment_is_in_no_table(results: Path) -> None:
    page = (results / "README.md").read_text()
    assert "in no table, differs from its file: batch_size: 128 -> 64" in page
    assert "10.00 / 1.00" not in page  # its errors


def test_other_data_and_scaled_runs_have_pages_of_their_own(results: Path) -> None:
    plain = (results / "table2.md").read_text() + (results / "fig2.md").read_text()
    assert "75.00" not in plain
    assert "scaled" not in plain.lower()
    assert "he | not run" in plain.lower()
    scaled = (results / "table2-scaled-synthetic.md").read_text()
    assert "SCALED DOWN" in scaled.splitlines()[0]
    assert "ours (scaled)" in scaled
    assert "| 75.00 / 25.00 |" in scaled
    assert "difference" not in scaled
    sec22 = (results / "sec22-scaled-synthetic.md").read_text()
    assert "| 14 layers | He | 33.82 / 13.34 | 75.00 / 25.00 |" in sec22
    assert "| 30 layers | He | 38.56 / 16.59 | not run |" in sec22
    assert not (results / "table5-scaled-synthetic.md").exists()  # it would be empty
    (row, *_) = rows_of(results / "table2-scaled-synthetic.csv")
    assert row["difference"] == ""
    other = (results / "fig2-folder.md").read_text()
    assert 'NOT ImageNet, on images of "birds"' in other.splitlines()[0]
    assert "/elsewhere" not in "".join(p.read_text() for p in (results / "records").iterdir())


def test_curves_and_gradients(results: Path) -> None:
    he, xavier = rows_of(results / "fig3.csv")
    assert he["seeds"] == xavier["seeds"] == "2"
    assert float(he["top1_error"]) < 72 < 99 < float(xavier["top1_error"])
    assert float(he["top1_spread"]) == pytest.approx(0.01 / 2**0.5, rel=0.05)
    assert float(xavier["conv1_gradient_first"]) == pytest.approx(1e-6)
    assert float(xavier["conv1_gradient_last"]) == pytest.approx(5e-7)
    # 9 epochs of 1,281,167 images at 400 a second, two seeds.
    assert f"| {2 * 9 * 1_281_167 / 400 / 3600:.1f} |" in (results / "fig3.md").read_text()


def test_slopes_are_those_of_the_checkpoint(results: Path) -> None:
    rows = rows_of(results / "table1.csv")
    assert [row["layer"] for row in rows[::2]] == list(SLOPES)
    assert float(rows[0]["ours"]) == pytest.approx(0.7, abs=1e-6)
    assert float(rows[2]["ours"]) == pytest.approx(0.35, abs=1e-6)
    assert float(rows[3]["ours"]) == pytest.approx(0.3, abs=1e-6)
    assert rows[3]["state"] == "partial: 3 of 75 epochs"
    assert float(rows[2]["difference"]) == pytest.approx(0.35 - 0.103, abs=1e-6)


def test_slopes_over_time_and_filters_are_those_of_the_run(
    reproduction: Path, results: Path
) -> None:
    name = "small14-prelu-imagenet-seed0"
    runs = {run.name: run for run in load(results)}
    figure = draw_slopes_over_time(runs[name], "", Edition())
    assert [axes.get_title() for axes in figure.axes[: len(SLOPES)]] == list(SLOPES)
    mean, initial, paper = figure.axes[0].get_lines()
    per_epoch = 1_281_167 / 128
    points = [(0, 0.25), (10_009 / per_epoch, 0.3), (30_027 / per_epoch, 0.6)]
    np.testing.assert_allclose(mean.get_xydata(), points)
    np.testing.assert_allclose(initial.get_ydata(), 0.25)
    np.testing.assert_allclose(paper.get_ydata(), 0.596)  # conv1, channel-wise
    weights = checkpoint(reproduction / "runs" / name)["network"]["trunk.conv1.weight"]
    with Image.open(BytesIO(b64decode(runs[name].filters))) as picture:
        assert np.array_equal(np.asarray(picture), filter_grid(weights))
    others = [run for name, run in runs.items() if "small14-prelu" not in name]
    assert not any(run.filters or run.slopes_over_time for run in others)


def test_only_an_ensemble_of_the_six_models_counts(results: Path, tmp_path: Path) -> None:
    (row,) = [
        row
        for row in rows_of(results / "table7.csv")
        if row["models"].startswith("PReLU") and row["error"] == "top5"
    ]
    assert float(row["ours"]) == 5.0
    runs = tmp_path / "runs"
    names = [f"{e}-imagenet-seed{s}/predictions-dense.npz" for e, s in ENSEMBLE_MEMBERS[:5]]
    make_result(runs / "ensemble-imagenet", DENSE, {None: (9, 9)}, checkpoints=names)
    assert "| – / 4.94 | not run |" in reported(runs, tmp_path / "results")


def test_only_the_test_that_the_table_names_counts(tmp_path: Path) -> None:
    wrong = {256: (100, 10), None: (100, 10)}
    other_settings: list[dict[str, Any]] = [
        {"square": True},
        {"average": "logits"},
        {"subset": 500},
        {"checkpoints": ["somewhere/checkpoints/best.pt"]},
    ]
    run = make_run(tmp_path / "runs", "small14-relu")
    for index, setting in enumerate(other_settings):
        make_result(run, TEN, wrong, **setting)
        (run / "result-ten.json").rename(run / f"result-{index}.json")
    page = reported(tmp_path / "runs", tmp_path / "results")
    assert re.search(r"\| ReLU \| 33.82 / 13.34 \| not tested \|", page)
    make_result(run, TEN, {256: (17_000, 7_000), None: (17_000, 7_000)})
    assert "| 34.00 / 14.00 |" in reported(tmp_path / "runs", tmp_path / "results")
    later = time.time() + 60  # training continued after the test
    os.utime(run / "checkpoints" / "last.pt", (later, later))
    page = reported(tmp_path / "runs", tmp_path / "results")
    assert "| 34.00 / 14.00 |" not in page


def test_a_renamed_run_keeps_its_results(tmp_path: Path) -> None:
    """A result of another run that was written into its folder stays the other run's."""
    home = make_run(tmp_path / "runs", "a-relu").rename(tmp_path / "runs" / "old")
    make_result(home, DENSE, WRONG)
    make_result(
        home, TEN, WRONG, checkpoints=["elsewhere/b/last.pt"], out=f"{home}/result-ten.json"
    )
    run = read_run(home.rename(home.with_name("new")))
    assert run is not None
    assert run.results[f"result-{DENSE.name}.json"]["checkpoints"] == ["new/last.pt"]
    assert run.results[f"result-{TEN.name}.json"]["checkpoints"] == ["b/last.pt"]
    assert find_result(run, DENSE) is not None


def test_the_commit_is_that_of_the_last_session_that_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without reproduce.py and its sessions.jsonl."""
    folder = make_run(tmp_path / "runs", "a-relu")

    def session(version: str, first: int, last: int) -> str | None:
        monkeypatch.setattr("engine.log.commit", lambda: version)
        log = Log(folder, step=first, validated=0, total=30, active=True)
        if last > first:
            log.write("train", last, epoch=0, loss=1.0, images_per_second=1.0)
        log.close()
        run = read_run(folder)
        assert run is not None
        return run.commit

    assert session("a", 0, 10) == "a"
    assert session("b", 10, 20) == "b"
    assert session("b", 20, 30) == "b"
    assert session("c", 30, 30) == "b"  # nothing was left to do
    lines = read_json_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "commit"] == [0, 10]
    assert session("d", 5, 10) == "d"


def test_scaled_runs_of_different_lengths_are_not_averaged(tmp_path: Path) -> None:
    for seed, steps in ((0, 400), (1, 400), (2, 100)):
        make_run(tmp_path, "scaled-fig3-he", "data=synthetic", f"max_steps={steps}", seed=seed)
    edition = Edition(scaled=True, data="synthetic")
    runs = EditionRuns(edition, collect(tmp_path, tmp_path / "results"))
    chosen = runs.choose("fig3-he")
    assert [(run.seed, run.steps) for run in chosen.runs] == [(0, 400), (1, 400)]


def test_records_outlive_the_runs_and_damaged_ones_are_refused(
    results: Path, tmp_path: Path
) -> None:
    shutil.copytree(results / "records", tmp_path / "records")
    page = reported(tmp_path / "none", tmp_path)
    assert page == (results / "README.md").read_text()
    (tmp_path / "records" / "odd.json").write_text("{")
    with pytest.raises(UserError, match=r"odd\.json is damaged"):
        load(tmp_path)


def test_the_page_shows_every_figure_and_needs_no_other_file(results: Path) -> None:
    page, html = (results / "README.md").read_text(), (results / "report.html").read_text()
    figures = re.findall(r"\((\S+)\.png\)", page)
    assert {"table1", "table1-over-time", "table1-filters"} <= set(figures)
    assert {"fig3", "fig6", "fig7", "fig2-folder"} <= set(figures)
    for name in figures:
        with Image.open(results / f"{name}.png") as picture:
            assert min(picture.size) > 300
        assert (results / f"{name}.svg").read_text().rstrip().endswith("</svg>")
    assert html.count("data:image/png;base64,") == len(figures)
    assert not re.search(r'(src|href)="(?!data:|https?:|#)', html)
    for text in (page.replace("](#", '](href="#'), html):
        linked = re.findall(r'href="#([^")]+)', text)
        assert {"table4", "fig3", "fig6", "table2-scaled-synthetic"} <= set(linked)
        assert all(text.count(f'<a id="{anchor}"></a>') == 1 for anchor in linked)
    assert html.count("<table>") == len(re.findall(r"^\| ---", page, re.MULTILINE))


def test_figures_without_records_are_deleted(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    for path in (copy / "records").iterdir():
        path.unlink()
    page = reported(tmp_path / "none", copy)
    for name in ("table1", "table1-over-time", "table1-filters", "fig3", "fig6", "fig7"):
        assert f"({name}.png)" not in page
        assert not (copy / f"{name}.png").exists()
    assert "No training run is finished yet." in page
