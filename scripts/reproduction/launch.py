"""Runs jobs on this machine or on a cluster; a job that fails does not stop the others."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from analysis.report.runs import Session
from common.errors import Stopped
from common.machine import commit
from scripts.reproduction.plan import Job

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = ("local", "torchrun", "slurm")


@dataclass(frozen=True)
class Launcher:
    """How a program is started."""

    kind: str = "local"
    processes: int = 1  # torchrun: on this machine

    def command(self, job: Job) -> list[str]:
        """The command line, as typed in the current folder."""
        program = os.path.relpath(ROOT / job.program)
        start = ["python", program]
        if self.kind == "torchrun":
            start = ["torchrun", f"--nproc-per-node={self.processes}", program]
        elif self.kind == "slurm":
            script = ROOT / "scripts" / "slurm" / f"{job.program.removesuffix('.py')}.sbatch"
            # singleton: waits for a job of the same run that an earlier call has submitted.
            name = [f"--job-name={job.name}", "--dependency=singleton"]
            start = ["sbatch", "--wait", *name, os.path.relpath(script)]
        return [*start, *job.arguments]

    def start(self, job: Job) -> "subprocess.Popen[bytes]":
        """Start the command, with the interpreter that runs this program."""
        words = self.command(job)
        if self.kind != "slurm":
            words[0] = sys.executable
        if self.kind == "torchrun":
            words[1:1] = ["-m", "torch.distributed.run"]
        return subprocess.Popen(words)


@dataclass
class Outcome:
    """What became of the jobs."""

    failed: dict[str, str] = field(default_factory=dict)  # command: why
    stopped: bool = False


class Runner:
    """Runs jobs in order; on a cluster all at once, each as soon as the jobs it needs are done."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.outcome = Outcome()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.version = commit()

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Run all jobs that are not done, except those that need a failed one."""
        previous_handler = signal.signal(signal.SIGTERM, self.pass_on)
        workers = max(1, len(jobs)) if self.launcher.kind == "slurm" else 1
        futures: dict[int, Future[bool]] = {}
        try:
            with ThreadPoolExecutor(workers) as pool:
                for job in jobs:  # after those it needs, so a single worker never waits for itself
                    needs = [futures[id(need)] for need in job.needs]
                    futures[id(job)] = pool.submit(self.run_one, job, needs)
                try:
                    for future in futures.values():
                        future.result()
                except KeyboardInterrupt:  # the terminal has interrupted the programs, too
                    self.outcome.stopped = True
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
        return self.outcome

    def run_one(self, job: Job, needs: Sequence["Future[bool]"]) -> bool:
        """Run a job once the jobs it needs are done; returns whether it is done in the end."""
        is_ready = all(need.result() for need in needs)
        command = shlex.join(self.launcher.command(job))
        if job.done:
            print(f"== {job.name}: {job.program} is done", flush=True)
            return True
        if self.outcome.stopped:
            return False
        if not is_ready:
            self.outcome.failed[command] = "not started: what it needs has failed"
            return False
        print(f"== {command}", flush=True)
        began, status = datetime.now(UTC), self.wait(job)
        if status in (0, Stopped.status) and job.folder.is_dir():
            self.log_session(job, command, began, status)
        if status == Stopped.status:
            self.outcome.stopped = True
        elif status and not self.outcome.stopped:
            self.outcome.failed[command] = f"exit status {status}"
        return status == 0

    def wait(self, job: Job) -> int:
        """Start the program and wait for its end; returns its exit status."""
        try:
            if job.program == "eval.py":
                job.folder.mkdir(parents=True, exist_ok=True)
            process = self.launcher.start(job)
        except OSError as error:  # sbatch is missing, or the folder cannot be made
            print(f"error: {error}", file=sys.stderr)
            return 127
        self.running.add(process)
        status = process.wait()
        self.running.discard(process)
        return status

    def pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Tell all programs to save and exit."""
        self.outcome.stopped = True
        for process in list(self.running):
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def log_session(self, job: Job, command: str, began: datetime, status: int) -> None:
        """Add a line to the run's sessions.jsonl, for the report, without the path of the data."""
        for argument in job.arguments:
            if argument.startswith("data.root="):
                command = command.replace(argument.removeprefix("data.root="), "DATA")
        session = Session(
            program=job.program,
            command=command,
            status=status,
            commit=self.version,
            processes=self.launcher.processes if self.launcher.kind != "slurm" else None,
            launcher=self.launcher.kind,
            began=began.isoformat(timespec="seconds"),
            seconds=round((datetime.now(UTC) - began).total_seconds(), 1),
        )
        with open(job.folder / "sessions.jsonl", "a") as file:
            file.write(json.dumps(asdict(session)) + "\n")
