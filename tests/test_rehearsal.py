"""`reproduce.py all` on made-up tars, killed and run again, up to the finished report."""

import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue

import pytest

from analysis.report.runs import load
from common.files import read_json_lines
from scripts import rehearsal, reproduce
from scripts.reproduction.launch import Launcher, Runner
from scripts.reproduction.official import Size, generated_classes, make_official
from scripts.reproduction.plan import Job, Request, plan
from tests.conftest import ROOT
from tests.forks import Forks
from tests.test_crash import assert_same

AT_ONCE = 2  # programs
STEPS, SIZE = 4, Size(classes=10, train=3, val=2)
LOADER = ["loader=torchvision", "loader.workers=0"]  # the fastest for so few images


@dataclass(eq=False)
class Program:
    """A program that reproduce.py runs, as a fork."""

    forks: Forks
    free: Queue[Forks]
    pid: int

    def wait(self) -> int:
        status = self.forks.wait()
        self.free.put(self.forks)
        return status

    def kill(self, job: Job) -> None:
        """Kill it while it runs: training after a random step, a test at any time."""
        step = random.Random(job.name).randint(1, STEPS - 1)
        while self.forks.alive() and job.program == "train.py":
            lines = read_json_lines(job.folder / "metrics.jsonl")
            if any(line["step"] >= step for line in lines):
                break
            time.sleep(0.001)
        self.forks.signal(signal.SIGKILL)


@dataclass
class Machine:
    """Starts programs in place of a Launcher, a few at a time, and kills some of them."""

    logs: Path
    free: Queue[Forks]
    kills: bool = False
    started: list[Job] = field(default_factory=list)
    killed: list[Job] = field(default_factory=list)

    def start(self, job: Job) -> Program:
        forks = self.free.get()
        self.started.append(job)
        log = self.logs / f"{job.name}-{len(self.started)}.log"
        program = Program(forks, self.free, forks.start([job.program, *job.arguments], log))
        if self.kills and random.Random(f"{job.program} {job.name}").random() < 0.2:
            self.killed.append(job)
            threading.Thread(target=program.kill, args=[job]).start()
        return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield (folder := tmp_path_factory.mktemp("rehearsal"))
    shutil.rmtree(folder)  # a gigabyte


@pytest.fixture(scope="module")
def machine(folder: Path) -> Iterator[Machine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("OMP_NUM_THREADS", "1")
        servers = [Forks()]
        servers += [Forks(twin_of=servers[0]) for _ in range(AT_ONCE - 1)]
        machine = Machine(folder, Queue())
        for forks in servers:
            machine.free.put(forks)
        patch.setattr(Launcher, "start", lambda launcher, job: machine.start(job))
        yield machine
    for forks in reversed(servers):
        forks.close()


@pytest.fixture(scope="module")
def command(folder: Path) -> list[str]:
    make_official(folder / "rehearsal", generated_classes(SIZE, seed=0), seed=0)
    arguments = rehearsal.reproduction(folder, SIZE.classes, STEPS, LOADER)
    return [arguments[0], "--launcher=slurm", *arguments[1:]]  # what can run at once does


def test_everything_is_killed_and_run_again(
    machine: Machine, command: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.kills = True
    with pytest.raises(SystemExit):
        reproduce.main(command)
    stderr = capsys.readouterr().err
    assert stderr.count("failed (exit status -9)") == len(machine.killed) > 3
    assert rehearsal.unfilled(folder / "results")
    first, machine.kills = len(machine.started), False
    reproduce.main(command)
    again = machine.started[first:]
    assert {job.folder for job in again} == {job.folder for job in machine.killed}
    assert rehearsal.unfilled(folder / "results") == []
    # A run that was killed and resumed equals an undisturbed one.
    job = next(job for job in machine.killed if job.program == "train.py")
    undisturbed = folder / "undisturbed" / job.folder.name
    arguments = [word for word in job.arguments if not word.startswith("runs=")]
    forks = machine.free.get()
    forks.run(["train.py", *arguments, f"runs={undisturbed.parent}"], folder / "undisturbed.log")
    machine.free.put(forks)
    assert_same(job.folder, undisturbed)


def test_the_report_names_the_data_and_what_was_changed(folder: Path) -> None:
    page = (folder / "results" / "README.md").read_text()
    assert 'Table 7: several models together – SCALED DOWN, on images of "rehearsal"' in page
    assert "say, but batch_size=16, data.crop=32, model.fc=[16, 16]." in page
    sessions = [session for run in load(folder / "results") for session in run.sessions]
    assert sessions
    assert not any(str(folder / "rehearsal") in session.command for session in sessions)


def test_nothing_is_left_to_do_and_a_foreign_folder_is_refused(
    machine: Machine, command: list[str], folder: Path
) -> None:
    request = Request(
        ["table4"],
        scaled=True,
        data=str(folder / "rehearsal"),
        runs=folder / "runs",
        seeds=[0],
        steps=STEPS,
        overrides=command[command.index("--") + 1 :],
    )
    jobs = plan(request)
    assert all(job.done for job in jobs)
    relu, prelu = (job.folder for job in jobs if job.program == "train.py")
    shutil.rmtree(prelu)
    shutil.copytree(relu, prelu)
    first = len(machine.started)
    outcome = Runner(Launcher()).run(plan(request))
    assert [job.folder for job in machine.started[first:]] == [prelu]
    (log,) = folder.glob(f"{prelu.name}-{first + 1}.log")
    assert "is of a run with another configuration" in log.read_text()
    assert list(outcome.failed.values()) == [
        "exit status 1",
        "not started: what it needs has failed",
    ]
