"""The processes of a job. A single process is a world of size 1: it waits for nobody."""

import os
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.errors import UserError, tell
from configs.validate import validate_timeout
from engine.watchdog import Watch, Watchdog, end_now

# The watchdog deals with hung collectives. One that only waits for slower processes, such as those
# with more images to test, may take long.
_COLLECTIVE_TIMEOUT = timedelta(days=1)
_POLL_INTERVAL = 0.02  # seconds

DEV, DRIVER = Path("/dev"), Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class World:
    """Which process this is, of how many, and the device it computes on."""

    rank: int
    size: int
    device: torch.device
    watch: Watch = field(default_factory=Watch)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """The devices of all processes, for a person."""
        gpu = self.device.type == "cuda"
        kind = torch.cuda.get_device_name(self.device) if gpu else "CPU"
        return f"{self.size} x {kind}" if self.size > 1 else kind

    def share(self, count: int) -> slice:
        """This process's rows of a batch of `count`, which `size` divides."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def replicate(self, network: nn.Module) -> nn.Module:
        """A wrapped network whose backward pass averages gradients over the processes."""
        if self.size == 1:
            return network
        with warnings.catch_warnings():
            # torch 2.14 renames broadcast_buffers; 2.11 has only the old name.
            warnings.simplefilter("ignore", FutureWarning)
            # Our buffers are constants. Bucket views save a copy of all gradients.
            return DistributedDataParallel(
                network, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes, on the CPU, for every process."""
        if self.size == 1:
            return values.cpu()
        self.watch.meet()
        total = values.to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.watch.meet()
        if self.size > 1:
            dist.barrier()

    def gather(self, values: list[str]) -> list[str]:
        """All processes' values in order of rank, for every process."""
        if self.size == 1:
            return values
        self.watch.meet()
        lists: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(lists, values)
        return [value for part in lists for value in part]


def _device(choice: str, local_rank: int) -> torch.device:
    """The device of a process; raises UserError if it cannot have the GPU it should have."""
    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise UserError("device=cuda, but torch finds no GPU here: use device=cpu")
    if choice == "auto" and not available and (driver := _idle_driver()):
        raise UserError(
            f"this machine has a GPU with driver {driver}, but torch {torch.__version__} finds "
            f"none: it needs a driver for CUDA {torch.version.cuda}, or use device=cpu"
        )
    if choice == "cpu" or not available:
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} of this machine has no GPU of its own, there are "
            f"{torch.cuda.device_count()}: start as many processes as GPUs"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _idle_driver() -> str:
    """The version of the NVIDIA driver if this process may see a GPU, otherwise ""."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    if hidden or not any(path.name[6:].isdigit() for path in DEV.glob("nvidia*")):
        return ""
    try:
        words = DRIVER.read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


@contextmanager
def open_world(device: str, timeout: int) -> Iterator[World]:
    """Join the processes that torchrun started, if any; leave them at the end.

    If a process hangs for `timeout` seconds, all end with a sentence that names it. A process that
    fails says why and ends at once, without destroying the group: for NCCL that is a collective,
    and its peers may be in another one (pytorch/pytorch#119250). Raises UserError for a device that
    does not exist or too short a timeout.
    """
    validate_timeout(timeout)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = _device(device, local_rank)
    if size == 1:
        yield World(0, 1, chosen)
        return
    launcher_store, rank, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    store = own_store(launcher_store, rank, size, timeout)
    watch = Watchdog(store, rank, size, timeout)
    try:
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=dist.PrefixStore("default_pg", store),
            rank=rank,
            world_size=size,
            timeout=_COLLECTIVE_TIMEOUT,
            device_id=chosen if chosen.type == "cuda" else None,
        )
        yield World(rank, size, chosen, watch)
    except BaseException as error:
        status = tell(error)
        sys.stdout.flush()
        watch.close()
        end_now(status)
    dist.destroy_process_group()
    watch.close()


def own_store(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """A part of the launcher's store to which no earlier start of the same job has written.

    When --max-restarts starts the processes again, torchrun keeps its store with what the dead ones
    left there (pytorch/pytorch#135712): addresses at which nobody listens any more.
    TORCHELASTIC_RESTART_COUNT may differ from node to node. So process 0 makes up a name for this
    start, and each other process asks for it with a key of its own, which only a living process 0
    can answer. Called once by each process; raises UserError if one does not come within `timeout`
    seconds.
    """
    key = uuid.uuid4().hex
    if rank == 0:
        _answer(store, size, name=key, timeout=timeout)
        return dist.PrefixStore(key, store)
    store.set(f"asks/{rank}", key)
    try:
        store.wait([f"answer/{key}"], timedelta(seconds=timeout))
    except dist.DistStoreError as error:
        raise UserError(f"process 0 of {size} has not started within {timeout:.0f} s") from error
    name = store.get(f"answer/{key}").decode()
    store.set(f"here/{name}/{rank}", "")
    return dist.PrefixStore(name, store)


def _answer(store: dist.Store, size: int, name: str, timeout: float) -> None:
    """Tell all others the name; a process that is dead by now may have asked before them."""
    missing, end = set(range(1, size)), time.monotonic() + timeout
    while missing:
        if time.monotonic() > end:
            ranks = ", ".join(map(str, sorted(missing)[:8]))
            raise UserError(f"process {ranks} of {size} has not started within {timeout:.0f} s")
        for rank in sorted(missing):
            if store.check([f"asks/{rank}"]):
                store.set(f"answer/{store.get(f'asks/{rank}').decode()}", name)
        missing -= {rank for rank in missing if store.check([f"here/{name}/{rank}"])}
        time.sleep(_POLL_INTERVAL)
