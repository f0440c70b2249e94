"""What a plan costs according to reproduce.py: hours, from measured speeds or by arithmetic."""

import json
import re
from pathlib import Path

import pytest

from analysis.report.read import collect
from common.errors import UserError
from scripts.reproduction.cost import cost_table, given_rates, run_rates
from scripts.reproduction.launch import Launcher
from scripts.reproduction.plan import Request, plan
from tests.fake_runs import make_run


def test_throughputs(tmp_path: Path) -> None:
    row = {"path": "ours", "model": "C", "images_per_second": 99.5}
    file = tmp_path / "train.json"
    file.write_text(json.dumps({"rows": [{"path": "plain_nchw"}, row]}))
    rates = given_rates(["A=12.5", str(file)])
    assert {model: rate.images_per_second for model, rate in rates.items()} == {
        "A": 12.5,
        "C": 99.5,
    }
    (tmp_path / "none.json").write_text('{"rows": []}')
    for bad in ("A", "A=fast", "A=0", str(tmp_path), str(tmp_path / "none.json")):
        with pytest.raises(UserError, match="neither MODEL=IMAGES_PER_SECOND nor a file"):
            given_rates([bad])


def test_hours_of_dense_tests(tmp_path: Path) -> None:
    speeds = {256: 100.0, 384: 50.0, 480: 25.0}
    rows = [
        {"path": path, "model": "A", "scale": scale, "images_per_second": speed * factor}
        for scale, speed in speeds.items()
        for path, factor in (("ours", 1), ("window_loop", 0.1))
    ]
    file = tmp_path / "dense.json"
    file.write_text(json.dumps({"rows": rows}))
    jobs = plan(Request(["table4"], runs=tmp_path))
    text = cost_table(jobs, given_rates(["A=350", str(file)]), Launcher())
    # 50,000 images at each scale.
    each = 50_000 * (1 / 100 + 1 / 50 + 1 / 25) / 3600
    assert text.count(f": to do, 150,000 images, {each:.2f} GPU hours") == 2
    assert f"2 dense tests take about {2 * each:.1f} GPU hours." in text
    assert "dense tests" not in cost_table(jobs, given_rates(["A=350", "A@256=100"]), Launcher())


def test_hours_by_arithmetic_and_the_targets_of_a_job(tmp_path: Path) -> None:
    jobs = plan(Request(["table4", "table5"], runs=tmp_path))
    text = cost_table(jobs, {}, Launcher(), card="A100").splitlines()
    # 80 epochs of model A: three times 19.06 billion multiply-adds an image, at 40 % of 312e12 / 2.
    hours = 80 * 1_281_167 * 3 * 19.06e9 / (0.4 * 312e12 / 2) / 3600
    [line] = [line for line in text if line.startswith("# a-prelu") and "102,493,360" in line]
    match = re.search(r", ([\d.]+) GPU hours by arithmetic \[table4, table5\]", line)
    assert match
    assert float(match[1]) == pytest.approx(hours, rel=1e-3)
    assert any("not by measurement: 40% of the 312 TFLOP/s" in line for line in text)
    measured = cost_table(jobs, given_rates(["A=350"]), Launcher())
    assert re.search(r"# a-prelu.* 81\.34 GPU hours \[table4, table5\]", measured)


def test_throughput_of_runs_counts_processes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "b-extra9", done=2)
    session = {"program": "train.py", "processes": 8, "commit": None, "command": "", "status": 0}
    (run / "sessions.jsonl").write_text(json.dumps(session))
    rates = run_rates(collect(tmp_path / "runs", tmp_path / "results"))
    assert rates["B+9"].images_per_second == 400 / 8
