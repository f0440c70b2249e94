"""A real SLURM on this machine alone: munged, slurmctld and slurmds, all in one folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")
NODES = ("n1", "n2")  # two slurmds of one machine, where SLURM was built to allow it
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
GresTypes=gpu
JobRequeue=1
KillWait=10
ReturnToService=2
MailProg=/bin/true
SlurmdParameters=config_overrides
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=8000 "
    "Gres=gpu:2"
)


def missing() -> str:
    """Why no cluster can be started here; empty if it can."""
    not_installed = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if not_installed:
        return f"{', '.join(not_installed)} not installed (Debian: slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "slurmd must be started by root"


def _path() -> str:
    """With this interpreter, for a repository without .venv, and Debian's place for daemons."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass(frozen=True)
class Cluster:
    """Two nodes of 16 CPUs and two GPUs, as far as SLURM knows; all jobs share this machine."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str | Path) -> str:
        """What a SLURM command prints; raises CalledProcessError, with stderr, if it fails."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        if done.returncode:
            raise subprocess.CalledProcessError(
                done.returncode, command, done.stdout, f"{done.stderr}\n{self.logs()}"
            )
        return done.stdout.strip()

    def logs(self) -> str:
        """The ends of the daemons' logs, for the report of a failed test."""
        files = [self.folder / "munged.out", *sorted(self.folder.glob("*.log"))]
        return "\n".join(f"== {file.name}\n{file.read_text()[-2000:]}" for file in files)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job or an array's task."""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(
        self, number: str, what: Callable[[dict[str, str]], bool], seconds: float = 300
    ) -> dict[str, str]:
        """The job, once `what` is true of it; fails after `seconds`, with the job's output."""
        end = time.monotonic() + seconds
        while not what(job := self.job(number)):
            if time.monotonic() > end:
                printed = Path(job["StdOut"])
                output = printed.read_text() if printed.exists() else ""
                raise AssertionError(f"timed out: {job}\n{output}\n{self.logs()}")
            time.sleep(0.1)
        return job


@contextlib.contextmanager
def open_cluster(folder: Path) -> Iterator[Cluster]:
    """Start the daemons, wait until the nodes are idle; stop jobs and daemons at the end."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
    environment = {**kept, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    cluster = Cluster(folder, environment)
    _write_files(folder)
    with contextlib.ExitStack() as started:

        def start(*command: str) -> None:
            out = started.enter_context(open(folder / f"{command[0]}.out", "a"))
            process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
            started.callback(_stop, process)

        munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
        # --force: pytest's folders are open to their owner only, munged wants them open to all.
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        _until((folder / "munge.socket").exists, cluster)
        start("slurmctld", "-D")
        for name in NODES:
            start("slurmd", "-D", "-N", name)
        _until(lambda: _idle(cluster), cluster)
        started.callback(_cancel_all, cluster)
        yield cluster


def _write_files(folder: Path) -> None:
    host = socket.gethostname().split(".")[0]
    controller, *ports = _free_ports(1 + len(NODES))
    nodes = [
        NODE.format(name=name, host=host, port=port)
        for name, port in zip(NODES, ports, strict=True)
    ]
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    values = {"host": host, "controller": controller, "user": user, "folder": folder}
    (folder / "slurm.conf").write_text(CONF.format(nodes="\n".join(nodes), **values))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")  # some device
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)


def _idle(cluster: Cluster) -> bool:
    try:
        states = cluster.call("sinfo", "--noheader", "--Node", "--format=%t")
    except subprocess.CalledProcessError:  # not listening yet
        return False
    return set(states.split()) == {"idle"}


def _until(what: Callable[[], bool], cluster: Cluster) -> None:
    end = time.monotonic() + 60
    while not what():
        if time.monotonic() > end:
            raise RuntimeError(f"the daemons did not start\n{cluster.logs()}")
        time.sleep(0.1)


def _cancel_all(cluster: Cluster) -> None:
    cluster.call("scancel", "--signal=KILL", "--full", "--user=root")
    cluster.call("scancel", "--user=root")
    end = time.monotonic() + 30
    while cluster.call("squeue", "--noheader") and time.monotonic() < end:
        time.sleep(0.1)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
