"""The real reproduce.py: what it plans, runs and reuses, and what it does when something fails."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.report.paper import ENSEMBLE_MEMBERS
from scripts.reproduce import main
from scripts.reproduction.launch import Launcher, Runner
from scripts.reproduction.plan import Request, plan
from tests.conftest import ROOT, metrics, run_program
from tests.fake_runs import make_run
from tests.test_reproduce_experiments import FULL

PROGRAM = "scripts/reproduce.py"


def places(folder: Path) -> list[str]:
    return [f"--runs={folder / 'runs'}", f"--results={folder / 'results'}"]


def test_dry_run_of_all_lists_every_run_and_does_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    rates = ["--throughput", "A=350", "small14=2000"]
    main(["all", "--dry-run", *places(tmp_path), *rates])
    out = capsys.readouterr().out
    lines = out.splitlines()
    trained = [line for line in lines if line.startswith("python train.py ")]
    for name in FULL:
        assert any(f" experiment={name} seed=0 " in f"{line} " for line in trained), name
    for name, seed in ENSEMBLE_MEMBERS:
        assert any(f" experiment={name} seed={seed} " in f"{line} " for line in trained)
    assert len(trained) == len(set(trained)) == len(FULL) + 3  # more seeds of A and B
    tests = [line for line in lines if line.startswith("python eval.py ")]
    assert len(tests) == len(set(tests)) == 10 + 7 + 1  # ten views, dense, the ensemble
    assert "python scripts/reproduce.py analysis" in out
    # 80 epochs of 1,281,167 images at 350 a second.
    expected = "# a-relu-imagenet-seed0: to do, 102,493,360 images, 81.34 GPU hours ["
    assert any(line.startswith(expected) for line in lines)
    assert re.search(r"No throughput measured for B, B\+3, B\+6, B\+9, C, small30:", out)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_saves_and_the_same_command_goes_on(small: Path, tmp_path: Path) -> None:
    asked = [PROGRAM, "fig3", "--scaled", f"--data={small}", *places(tmp_path), "--seeds", "0"]
    more = ["--", "val_every=1000", "log_every=1"]
    first = tmp_path / "runs" / "scaled-fig3-he-folder-seed0"
    command = [sys.executable, *asked, "--steps=500", *more]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not metrics(first):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "the same command goes on" in stderr
    assert (first / "checkpoints" / "last.pt").exists()
    assert not (tmp_path / "runs" / "scaled-fig3-xavier-folder-seed0").exists()
    out = run_program(*asked, "--steps=500", "--dry-run", *more).stdout
    step = re.search(r"# scaled-fig3-he-folder-seed0: resume at step (\d+), ([\d,]+) images", out)
    assert step
    assert int(step[2].replace(",", "")) == (500 - int(step[1])) * 128
    assert "partial: " in (tmp_path / "results" / "fig3-scaled-folder.md").read_text()


def test_cluster_jobs_wait_for_what_they_need(tmp_path: Path, small: Path) -> None:
    """A stand-in for sbatch records its arguments, and fails for the runs with ReLU."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(
        f'#!/bin/sh\necho "$*" >>{tmp_path}/jobs\ncase "$*" in *a-relu*) exit 3;; esac\n'
    )
    sbatch.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    asked = ["table4", "--scaled", f"--data={small}", "--launcher=slurm", "--seeds", "0", "1"]
    done = run_program(PROGRAM, *asked, *places(tmp_path), check=False, PATH=path)
    assert done.returncode == 1
    assert done.stderr.count("failed (exit status 3): sbatch ") == 2
    assert done.stderr.count("not started: what it needs has failed") == 2
    jobs = (tmp_path / "jobs").read_text().splitlines()
    assert all(line.startswith("--wait --job-name=scaled-a-") for line in jobs)
    assert all(" --dependency=singleton scripts/slurm/" in line for line in jobs)
    assert sum("train.sbatch experiment=scaled-a-" in line for line in jobs) == 4
    tests = [i for i, line in enumerate(jobs) if "eval.sbatch checkpoint=" in line]
    assert len(tests) == 2
    for i in tests:
        name = re.search(r"--job-name=(\S+)", jobs[i])
        assert name
        assert any(f"{name[0]} " in line and "train.sbatch" in line for line in jobs[:i])


def test_launchers(small: Path, tmp_path: Path) -> None:
    request = Request(["fig2"], scaled=True, data=str(small), seeds=[4], runs=tmp_path)
    he, _ = plan(request)
    end = f"experiment=scaled-fig2-he seed=4 data=folder data.root={small} runs={tmp_path}"
    start = {"local": "python train.py", "torchrun": "torchrun --nproc-per-node=8 train.py"}
    for kind, words in start.items():
        program = os.path.relpath(ROOT / "train.py")
        expected = f"{words} {end}".replace("train.py", program)
        assert " ".join(Launcher(kind, 8).command(he)) == expected


def test_tests_follow_a_run_that_went_on(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a-prelu")
    request = Request(["table6"], runs=tmp_path)

    def states() -> dict[str, str]:
        return {job.program: job.state for job in plan(request) if job.name == run.name}

    assert states() == {"train.py": "done", "eval.py": "to do"}
    for name in ("result-dense.json", "predictions-dense.npz"):
        (run / name).write_text("{}")
    assert states() == {"train.py": "done", "eval.py": "done"}
    (run / "predictions-dense.npz").unlink()  # Table 7 needs it
    assert states()["eval.py"] == "to do"
    (run / "predictions-dense.npz").write_text("")
    os.utime(run / "result-dense.json", (1, 1))
    assert states()["eval.py"] == "to do"


def test_seeds_of_a_target_and_unfinished_runs(tmp_path: Path) -> None:
    make_run(tmp_path, "small14-prelu", seed=5, done=2)
    jobs = plan(Request(["table1"], runs=tmp_path, seeds=[5, 6]))
    assert [job.name.rpartition("-")[2] for job in jobs] == ["seed5", "seed6"] * 2
    (begun,) = [job for job in jobs if job.name == "small14-prelu-imagenet-seed5"]
    assert begun.state == f"resume at step {2 * 1_281_167 // 128:,}"
    assert begun.images - begun.seen == 75 * 1_281_167 - 2 * 1_281_167 // 128 * 128


def test_a_job_whose_program_is_missing_fails_alone(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch
    request = Request(["fig2"], scaled=True, data=str(small), seeds=[0], runs=tmp_path / "runs")
    outcome = Runner(Launcher("slurm")).run(plan(request))
    assert sorted(outcome.failed.values()) == ["exit status 127"] * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["table2", "--scaled"], "--scaled needs --data FOLDER"),
        (["table2", "--steps=3"], "--steps needs --scaled"),
        (["fig3", "--scaled", "--data=/nowhere"], "no data set at /nowhere"),
        (["table2", "--", "batch=3"], "batch"),
    ],
)
def test_refusals(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([arguments[0], *places(tmp_path), *arguments[1:]])
    assert left.value.code == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert sentence in stderr
    assert list(tmp_path.iterdir()) == []
