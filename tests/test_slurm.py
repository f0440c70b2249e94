"""The real scripts/slurm on a real SLURM: stopped jobs resume, and nothing is lost."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, checkpoint, metrics, run_program
from tests.slurm_cluster import Cluster, missing, open_cluster
from tests.test_train import same_tensors

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=missing())]

# Several jobs at once on a node, each on one of its two GPUs, which are not there: on the CPU.
PART = ["--oversubscribe", "--gpus-per-node=1", "--cpus-per-gpu=4", "--mem=2G"]
ONE = "--ntasks-per-node=1"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with open_cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


Submit = Callable[..., str]


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Submit:
    def call(
        script: str, *arguments: str, options: list[str], where: Path = ROOT, **more: str
    ) -> str:
        """The number of the job of `sbatch OPTIONS scripts/slurm/SCRIPT ARGUMENTS`."""
        environment = {**cluster.environment, "CUDA_VISIBLE_DEVICES": "", **more}
        options = ["--parsable", f"--output={tmp_path}/%j.out", *options]
        command = ["sbatch", *options, str(ROOT / "scripts" / "slurm" / script), *arguments]
        return subprocess.check_output(command, cwd=where, env=environment, text=True).strip()

    return call


def output(cluster: Cluster, job: str) -> str:
    """What a job, in all its sessions, has printed so far."""
    path = Path(cluster.job(job)["StdOut"])
    return path.read_text() if path.exists() else ""


def is_state(*states: str) -> Callable[[dict[str, str]], bool]:
    return lambda job: job["JobState"] in states


def processes(name: str) -> list[int]:
    """The process ids of a run's train.py, not of its launchers."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
        except OSError:  # it has ended
            continue
        if Path(words[0]).name.startswith("python") and f"name={name}" in words:
            pids.append(int(path.parent.name))
    return pids


def until_trained(folder: Path) -> list[int]:
    """Wait for the first line of metrics, of step 7; returns the run's process ids."""
    end = time.monotonic() + 300
    pids: list[int] = []
    while not metrics(folder):
        assert time.monotonic() < end, "the job did not begin to train"
        pids = pids or processes(folder.name)
        time.sleep(0.001)
    return pids


def released(cluster: Cluster, job: str, **changes: str) -> dict[str, str]:
    """The job at its end, after one requeue, whose pause of two minutes is cut short.

    Not to zero: slurmd refuses to start a job that it killed in the same second.
    """
    waiting = cluster.wait(job, is_state("PENDING"))
    assert waiting["Restarts"] == "1"
    words = [f"{key}={value}" for key, value in changes.items()]
    cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now+3", *words)
    return cluster.wait(job, is_state("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"))


@pytest.mark.slow
def test_stopped_by_its_time_limit_it_requeues_and_gives_the_same_weights(
    cluster: Cluster, submit: Submit, command: list[str], runs: Path, undisturbed: Path
) -> None:
    folder = runs / "slurm-limit"
    job = submit("train.sbatch", *command[1:], f"name={folder.name}", options=[ONE, "--time=30"])
    pids = until_trained(folder)
    for pid in pids:  # the little run would end before SLURM looks at its limits, twice a minute
        os.kill(pid, signal.SIGSTOP)
    try:
        cluster.call("scontrol", "update", f"JobId={job}", "TimeLimit=4")
        cluster.wait(job, lambda _: "told to stop" in output(cluster, job))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    done = released(cluster, job, TimeLimit="30")
    assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1")
    printed = output(cluster, job)
    assert "stopped by a signal, saved at step" in printed
    assert "resuming" in printed
    assert same_tensors(checkpoint(folder)["network"], checkpoint(undisturbed)["network"])
    assert same_tensors(checkpoint(folder)["optimizer"], checkpoint(undisturbed)["optimizer"])
    assert metrics(folder) == metrics(undisturbed)


@pytest.mark.slow
def test_a_preempted_job_comes_back(
    cluster: Cluster, submit: Submit, command: list[str], runs: Path, undisturbed: Path
) -> None:
    folder = runs / "slurm-preempted"
    here = [ONE, "--nodelist=n1"]
    job = submit("train.sbatch", *command[1:], f"name={folder.name}", options=here)
    until_trained(folder)
    cluster.call("sbatch", "--partition=urgent", *here, "--exclusive", "--wrap=true")
    done = released(cluster, job)
    assert done["JobState"] == "COMPLETED"
    assert "saved at step" in output(cluster, job)
    assert same_tensors(checkpoint(folder)["network"], checkpoint(undisturbed)["network"])


def test_a_cancelled_job_saves_and_does_not_come_back(
    cluster: Cluster, submit: Submit, command: list[str], runs: Path
) -> None:
    folder = runs / "slurm-cancelled"
    job = submit("train.sbatch", *command[1:], f"name={folder.name}", options=PART)
    until_trained(folder)
    cluster.call("scancel", job)
    done = cluster.wait(job, is_state("CANCELLED", "PENDING"))
    while processes(folder.name):
        time.sleep(0.1)
    assert "stopped by a signal, saved at step" in output(cluster, job)
    assert (cluster.job(job)["JobState"], done["Requeue"]) == ("CANCELLED", "1")
    assert "back into the queue" not in output(cluster, job)


def test_refusals_are_passed_on_and_do_not_come_back(
    cluster: Cluster, submit: Submit, tmp_path: Path
) -> None:
    bad = submit("train.sbatch", "device=cpu", "precision=fp31", options=PART)
    away = submit("train.sbatch", "data=synthetic", options=PART, where=tmp_path)
    for job, sentence in ((bad, "precision=fp31 is unknown"), (away, "call sbatch in the repo")):
        done = cluster.wait(job, is_state("FAILED", "COMPLETED"))
        assert (done["JobState"], done["ExitCode"], done["Restarts"]) == ("FAILED", "1:0", "0")
        assert sentence in output(cluster, job)


def test_a_finished_run_of_an_array_stays_when_another_is_requeued(
    cluster: Cluster, submit: Submit, command: list[str], runs: Path, tmp_path: Path
) -> None:
    table = tmp_path / "runs of a table.txt"
    table.write_text('name=slurm-a act=relu "data.scale=[72, 80]"\nname=slurm-b act=prelu\n')
    short = [*command[1:], "max_steps=3", "val_subset=10"]
    options = [*PART, "--array=1-2"]
    number = submit("array.sbatch", str(table), *short, options=options)
    last = f"{number}_2"  # its short name is that of the array
    cluster.wait(last, is_state("RUNNING"))
    cluster.wait(last, lambda _: bool(processes("slurm-b")))
    cluster.call("scancel", "--batch", "--signal=USR1", last)  # as the time limit does
    assert released(cluster, last)["JobState"] == "COMPLETED"
    first = cluster.wait(f"{number}_1", is_state("COMPLETED"))
    assert first["Restarts"] == "0"
    assert checkpoint(runs / "slurm-a")["config"]["act"]["name"] == "relu"
    assert checkpoint(runs / "slurm-a")["config"]["data"]["scale"] == [72, 80]
    assert checkpoint(runs / "slurm-b")["config"]["act"]["name"] == "prelu"


@pytest.mark.slow
def test_two_nodes_train_as_two_processes_do(
    cluster: Cluster, submit: Submit, fifty: list[str], runs: Path, two: Path
) -> None:
    folder = runs / "slurm-two"
    arguments, options = [*fifty[1:], f"name={folder.name}"], [ONE, "--nodes=2"]
    job = submit("train.sbatch", *arguments, options=options, OMP_NUM_THREADS="1")
    until_trained(folder)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    done = released(cluster, job)
    assert (done["JobState"], done["NodeList"]) == ("COMPLETED", "n[1-2]")
    assert "2 processes on n[1-2]" in output(cluster, job)
    assert "saved at step" in output(cluster, job)
    assert same_tensors(checkpoint(folder)["network"], checkpoint(two)["network"])
    assert metrics(folder) == metrics(two)


def test_eval_on_a_whole_node_writes_the_result(
    cluster: Cluster, submit: Submit, undisturbed: Path, tmp_path: Path
) -> None:
    best, out = undisturbed / "checkpoints" / "best.pt", tmp_path / "a folder" / "result.json"
    out.parent.mkdir()
    arguments = [f"checkpoint={best}", "views=ten", "scales=[73,96]", "device=cpu"]
    job = submit("eval.sbatch", *arguments, f"out={out}", options=[])
    run_program("eval.py", *arguments, f"out={tmp_path}/alone.json")
    cluster.wait(job, is_state("COMPLETED"))
    assert "2 processes on n" in output(cluster, job)  # one for each GPU
    result, alone = (json.loads(path.read_text()) for path in (out, tmp_path / "alone.json"))
    assert result["combined"] == alone["combined"]
    assert result["scales"] == alone["scales"]


SEES = """
import os, sys, time
from pathlib import Path
print("sees", os.environ.get("CUDA_VISIBLE_DEVICES"), "of", os.environ["WORLD_SIZE"], sys.argv[1:])
sys.stdout.flush()
while not Path("go").exists():
    time.sleep(0.1)
"""


def test_a_step_gets_the_gpus_of_its_job(cluster: Cluster, submit: Submit, tmp_path: Path) -> None:
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "train.py").write_text(SEES)
    whole = submit("train.sbatch", "a=1", options=["--nodelist=n1"], where=tmp_path)
    shared = [*PART, "--nodelist=n2"]
    halves = [submit("train.sbatch", options=shared, where=tmp_path) for _ in range(2)]
    for job, count in ((whole, 2), (halves[0], 1), (halves[1], 1)):
        cluster.wait(job, lambda _, j=job, n=count: output(cluster, j).count("sees") == n)
    assert output(cluster, whole).count("sees 0,1 of 2 ['device=cuda', 'a=1']") == 2
    seen = [re.search(r"sees (\S+) of 1 \['device=cuda'\]", output(cluster, j)) for j in halves]
    assert {match and match[1] for match in seen} == {"0", "1"}  # at the same time
    (tmp_path / "go").touch()
    for job in (whole, *halves):
        cluster.wait(job, is_state("COMPLETED"))


STUCK = """
import signal, sys, time
signal.signal(signal.SIGUSR1, signal.SIG_IGN if "deaf" in sys.argv else signal.SIG_DFL)
print("started with", sys.argv[1:], flush=True)
time.sleep(300)
"""


@pytest.fixture
def stuck(tmp_path: Path) -> Path:
    """A repository whose train.py makes no progress."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "train.py").write_text(STUCK)
    return tmp_path


def test_a_program_that_does_not_listen_is_requeued_before_its_time_is_up(
    cluster: Cluster, submit: Submit, stuck: Path
) -> None:
    job = submit("train.sbatch", "deaf", "a b", options=[*PART, "--time=1"], where=stuck)
    cluster.wait(
        job, lambda _: "started with ['device=cuda', 'deaf', 'a b']" in output(cluster, job)
    )
    cluster.call("scontrol", "update", f"JobId={job}", "EndTime=now+10")
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    waiting = cluster.wait(job, is_state("PENDING", "TIMEOUT", "FAILED"))
    assert (waiting["JobState"], waiting["Restarts"]) == ("PENDING", "1")
    assert "not stopped in time" in output(cluster, job)
    cluster.call("scancel", job)


def test_a_job_without_progress_gives_up(cluster: Cluster, submit: Submit, stuck: Path) -> None:
    job = submit("train.sbatch", options=PART, where=stuck)
    for session in range(1, 4):
        cluster.wait(job, lambda _, n=session: output(cluster, job).count("started") == n)
        cluster.call("scancel", "--batch", "--signal=USR1", job)
        at = cluster.wait(job, is_state("PENDING", "FAILED"))
        if at["JobState"] == "PENDING":
            cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now+3")
    assert (at["JobState"], at["Restarts"]) == ("FAILED", "2")
    assert "3 times in a row before anything was saved" in output(cluster, job)
    assert list((stuck / "runs").iterdir()) == []
