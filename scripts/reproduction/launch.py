"""Does jobs, on this machine or on a cluster; one that fails does not stop the others."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from common.machine import commit
from scripts.reproduction.plan import Job

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = ("local", "torchrun", "slurm")
STOPPED = 75  # the programs' status once a signal has made them save and leave


@dataclass(frozen=True)
class Launcher:
    """How a program is started."""

    kind: str = "local"
    processes: int = 1  # torchrun: on this machine

    def command(self, job: Job) -> list[str]:
        """The command line, as typed in the folder where we are."""
        program = os.path.relpath(ROOT / job.program)
        match self.kind:
            case "torchrun":
                start = ["torchrun", f"--nproc-per-node={self.processes}", program]
            case "slurm":
                # singleton: after a job of the same run that was submitted before, and of which
                # this process knows nothing.
                name = [f"--job-name={job.name}", "--dependency=singleton"]
                file = f"{job.program.removesuffix('.py')}.sbatch"
                script = os.path.relpath(ROOT / "scripts" / "slurm" / file)
                start = ["sbatch", "--wait", *name, script]
            case _:
                start = ["python", program]
        return [*start, *job.arguments]

    def start(self, job: Job) -> "subprocess.Popen[bytes]":
        """The command, with this very interpreter."""
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
    """Does jobs in order, on a cluster as many at once as it has room for."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.outcome = Outcome()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.lock = threading.Lock()
        self.version = commit()

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Do all jobs that are not done; one whose needs have failed is left out."""
        before = signal.signal(signal.SIGTERM, self.pass_on)
        workers = max(1, len(jobs)) if self.launcher.kind == "slurm" else 1
        futures: dict[int, Future[bool]] = {}
        try:
            with ThreadPoolExecutor(workers) as pool:
                for job in jobs:  # needs come first, so that one worker never waits for itself
                    needs = [futures[id(need)] for need in job.needs]
                    futures[id(job)] = pool.submit(self.do, job, needs)
                try:
                    for future in futures.values():
                        future.result()
                except KeyboardInterrupt:  # the terminal has told the programs, too
                    self.outcome.stopped = True
        finally:
            signal.signal(signal.SIGTERM, before)
        return self.outcome

    def do(self, job: Job, needs: Sequence["Future[bool]"]) -> bool:
        """Whether the job is done in the end."""
        ready = all(need.result() for need in needs)
        command = shlex.join(self.launcher.command(job))
        if job.done:
            print(f"== {job.name}: {job.program} is done", flush=True)
            return True
        if self.outcome.stopped:
            return False
        if not ready:
            self.outcome.failed[command] = "not started: what it needs has failed"
            return False
        print(f"== {command}", flush=True)
        began, status = datetime.now(UTC), self.wait(job)
        if status in (0, STOPPED) and job.folder.is_dir():
            self.note(job, command, began, status)
        if status == STOPPED:
            self.outcome.stopped = True
        elif status and not self.outcome.stopped:
            self.outcome.failed[command] = f"exit status {status}"
        return status == 0

    def wait(self, job: Job) -> int:
        """Start the program and wait for its end; returns its exit status."""
        if job.program == "eval.py":
            job.folder.mkdir(parents=True, exist_ok=True)
        try:
            process = self.launcher.start(job)
        except OSError as error:  # there is no sbatch
            print(f"error: {error}", file=sys.stderr)
            return 127
        with self.lock:
            self.running.add(process)
        status = process.wait()
        with self.lock:
            self.running.discard(process)
        return status

    def pass_on(self, number: int, _frame: FrameType | None) -> None:
        """Tell all programs to save and leave."""
        self.outcome.stopped = True
        for process in list(self.running):
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def note(self, job: Job, command: str, began: datetime, status: int) -> None:
        """A line about this session in the run's folder, for the report."""
        roots = [key.partition("=")[2] for key in job.arguments if key.startswith("data.root=")]
        for root in roots:
            command = command.replace(root, "DATA")
        line = {
            "program": job.program,
            "command": command,
            "commit": self.version,
            "launcher": self.launcher.kind,
            "processes": self.launcher.processes if self.launcher.kind != "slurm" else None,
            "began": began.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
            "status": status,
        }
        with open(job.folder / "sessions.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
