"""Runs real programs without the seconds that importing torch takes, by forking.

`python tests/forks.py` imports the programs. For each line of JSON on its input it forks a child
that runs one of them as if a person had started it, in a process group of its own.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
# The programs that the server imports.
PROGRAMS = ("train.py", "eval.py", "scripts/reproduce.py", "scripts/prepare_imagenet.py")


class Forks:
    """A server that runs one program at a time."""

    def __init__(self, twin_of: "Forks | None" = None) -> None:
        """twin_of: the server from which to fork this one, for a second program at a time."""
        self.pid = 0
        self.server = None
        if twin_of is None:
            command = [sys.executable, str(Path(__file__).resolve())]
            self.server = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self.requests, self.answers = self.server.stdin, self.server.stdout
            return
        with tempfile.TemporaryDirectory() as folder:
            pipes = [f"{folder}/requests", f"{folder}/answers"]
            for pipe in pipes:
                os.mkfifo(pipe)
            twin_of._ask({"pipes": pipes})
            self.requests, self.answers = open(pipes[0], "w"), open(pipes[1])  # noqa: SIM115

    def _ask(self, request: dict[str, Any]) -> None:
        assert self.requests
        self.requests.write(json.dumps(request) + "\n")
        self.requests.flush()

    def _answer(self) -> int:
        assert self.answers
        return int(self.answers.readline())

    def start(
        self, arguments: list[str], output: Path, slow: float = 0, errors: Path | None = None
    ) -> int:
        """Start `python ARGUMENTS`, with its output in a file; returns the process id.

        slow: seconds by which to delay torch.save. errors: a separate file for stderr.
        """
        output.write_text("")
        self.output = output
        request = {"arguments": arguments, "output": str(output), "slow": slow}
        self._ask({**request, "errors": str(errors or output), "environment": dict(os.environ)})
        self.pid = self._answer()
        return self.pid

    def wait(self) -> int:
        """The exit status, or minus the number of the signal that ended the program."""
        return self._answer()

    def run(self, arguments: list[str], output: Path, slow: float = 0) -> str:
        """Run to the end, which must be a success; returns what was printed."""
        self.start(arguments, output, slow)
        status = self.wait()
        assert status == 0, output.read_text()
        return output.read_text()

    def alive(self) -> bool:
        """Whether the program is still running."""
        state = Path(f"/proc/{self.pid}/stat")
        try:
            return state.read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait until `reached`; the program must still be running then."""
        while self.alive() and not reached():
            time.sleep(0.0005)
        assert self.alive(), f"ended too early:\n{self.output.read_text()}"

    def signal(self, number: int) -> bool:
        """Send a signal to the program and its children; False if it has ended."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)
                return True
        return False

    def close(self) -> None:
        if self.pid:
            self.signal(signal.SIGKILL)
        for pipe in filter(None, (self.requests, self.answers)):
            pipe.close()
        if self.server:
            self.server.wait()


def _become(request: dict[str, Any]) -> None:
    """Run the requested program in this process."""
    for stream, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request["slow"]:
        import torch

        save = torch.save

        def slow_save(*arguments: Any) -> None:
            time.sleep(request["slow"])
            save(*arguments)

        torch.save = slow_save
    sys.argv = request["arguments"]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.insert(0, str(ROOT))
    programs = ("train", "eval", "scripts.reproduce", "scripts.prepare_imagenet")
    lazy = ("scipy.stats", "data.dali", "nvidia.dali.fn", "torchvision.utils", "torch._dynamo")
    for name in (*programs, *lazy):
        importlib.import_module(name)
    gc.freeze()  # or a child's first collection would copy all pages
    _answer_all(sys.stdin, sys.stdout)


def _answer_all(requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0 and "pipes" in request:
            with open(request["pipes"][0]) as requests, open(request["pipes"][1], "w") as answers:
                _answer_all(requests, answers)
            os._exit(0)
        if "pipes" in request:
            continue
        if pid == 0:
            os.setpgid(0, 0)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _become(request)
            sys.exit()
        with suppress(PermissionError):  # the child did it first
            os.setpgid(pid, pid)
        print(pid, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
