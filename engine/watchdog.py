"""Hung jobs: each process watches all, and ends the job with a sentence that names the culprit.

A process that is stopped, or whose storage or GPU no longer answers, leaves all others waiting in a
collective, whose own timeout names nobody. So every process posts two things to the store through
which the processes found each other: a heartbeat, from a thread, which stops when the process does;
and how far its main thread has come. Each reader takes the times by its own clock.
"""

import json
import multiprocessing
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import NoReturn

import torch.distributed as dist

_MAX_NAMED = 4  # processes that a sentence describes


@dataclass(frozen=True)
class Sign:
    """What a process posts about itself."""

    who: str = ""  # host and process id
    beat: int = 0
    met: int = 0  # points passed at which all processes meet, such as batches and sums
    moved: int = 0  # things done since then, by this process alone
    place: str = "the start"  # the last of these that has a name
    left: bool = False  # it has ended


@dataclass
class Seen:
    """What is known of a process: its last sign, and when it changed."""

    beat_at: float
    moved_at: float
    sign: Sign = field(default_factory=Sign)

    def update(self, sign: Sign, now: float) -> None:
        if sign.beat != self.sign.beat:
            self.beat_at = now
        if (sign.met, sign.moved) != (self.sign.met, self.sign.moved):
            self.moved_at = now
        self.sign = sign


def hanging(seen: list[Seen], now: float, timeout: float) -> str:
    """Which processes hold up the job, and how; "" if none has for `timeout` seconds.

    Stopped processes are named first. If there are none, it is those that have not moved and for
    which the others wait: processes that wait have met more often.
    """
    fewest_met = min(process.sign.met for process in seen)
    nobody_waits = all(process.sign.met == fewest_met for process in seen)
    waited_for = [
        rank
        for rank, process in enumerate(seen)
        if process.sign.met == fewest_met
        and now - process.moved_at >= timeout
        and not (process.sign.left and nobody_waits)
    ]
    silences = {r: now - process.beat_at for r, process in enumerate(seen) if not process.sign.left}
    if not waited_for and max(silences.values(), default=0.0) < timeout:
        return ""
    stopped = [rank for rank, silence in silences.items() if silence >= timeout / 2]
    if stopped:
        silence = max(silences[rank] for rank in stopped)
        return f"{_names(stopped, seen)} not answered for {silence:.0f} s"
    fewest_moved = min(seen[rank].sign.moved for rank in waited_for)
    stuck = [rank for rank in waited_for if seen[rank].sign.moved == fewest_moved]
    duration = now - max(seen[rank].moved_at for rank in stuck)
    others = ", and the others wait" if len(stuck) < len(seen) else ""
    return f"{_names(stuck, seen)} made no progress for {duration:.0f} s{others}"


def _names(ranks: list[int], seen: list[Seen]) -> str:
    """For example "process 1 of 4 (host gpu7, pid 123, last at step 9) has"."""
    named = ranks[:_MAX_NAMED]
    signs = [seen[rank].sign for rank in named]
    known = [f"{sign.who or 'never seen'}, last at {sign.place}" for sign in signs]
    if len(ranks) > _MAX_NAMED:
        known.append(f"and {len(ranks) - _MAX_NAMED} more")
    text = f"{', '.join(map(str, named))} of {len(seen)} ({'; '.join(known)})"
    return f"process {text} has" if len(ranks) == 1 else f"processes {text} have"


class Watch:
    """The watch of a single process, which does nothing: nobody waits for it."""

    def alive(self, place: str = "") -> None:
        """Note progress that is this process's own, such as a batch of its validation images."""

    def meet(self, place: str = "") -> None:
        """Note that this process has reached a point at which all processes meet."""


class Watchdog(Watch):
    """Ends the process if the job hangs; the first process to notice says why.

    The main thread of a hung job is in a collective that nothing wakes, so the process ends at
    once, with its loader's processes. The job can resume from its last checkpoint.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: float) -> None:
        self._rank, self._timeout = rank, timeout
        self._every = min(timeout / 20, 10.0)
        # A thread that waits for an answer blocks its connection, so each thread has its own.
        self._posts, self._votes = (dist.PrefixStore("watchdog", store.clone()) for _ in range(2))
        self._mine = Sign(f"host {socket.gethostname()}, pid {os.getpid()}")
        now = time.monotonic()
        self._seen = [Seen(now, now) for _ in range(size)]
        self._answered = now
        self._lock = threading.Lock()  # for _seen and _answered
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=run, name="watchdog", daemon=True)
            for run in (self._exchange, self._judge)
        ]
        for thread in self._threads:
            thread.start()

    def alive(self, place: str = "") -> None:
        mine = self._mine
        self._mine = replace(mine, moved=mine.moved + 1, place=place or mine.place)

    def meet(self, place: str = "") -> None:
        mine = self._mine
        self._mine = replace(mine, met=mine.met + 1, moved=0, place=place or mine.place)

    def close(self) -> None:
        """End the watch: this process has come to its end."""
        self._closing.set()
        for thread in self._threads:
            thread.join(self._every)  # a store that is gone must not hold up the end

    def _exchange(self) -> None:
        """Post our sign and read those of the others, until the end or until the store is gone."""
        keys = [f"process {rank}" for rank in range(len(self._seen))]
        beat, ranks = 0, set[int]()  # those that have posted
        with suppress(RuntimeError):  # a broken connection stays broken
            while True:
                beat += 1
                left = self._closing.is_set()
                sign = replace(self._mine, beat=beat, left=left)
                self._posts.set(keys[self._rank], json.dumps(asdict(sign)))
                ranks |= {r for r, key in enumerate(keys) if r in ranks or self._posts.check([key])}
                posted = self._posts.multi_get([keys[rank] for rank in sorted(ranks)])
                with self._lock:
                    self._answered = time.monotonic()
                    for rank, text in zip(sorted(ranks), posted, strict=True):
                        self._seen[rank].update(Sign(**json.loads(text)), self._answered)
                if left:
                    return
                self._closing.wait(self._every)

    def _judge(self) -> None:
        """Check how old the signs are; reads nothing, so a store that hangs cannot block it."""
        last = time.monotonic()
        while not self._closing.wait(self._every):
            now = time.monotonic()
            with self._lock:
                if now - last > self._timeout / 4:  # this process was suspended: no age is valid
                    self._start_anew(now)
                last = now
                sentence = self._sentence(now)
            if sentence:
                self._end(sentence)

    def _start_anew(self, now: float) -> None:
        self._answered = now
        for process in self._seen:
            process.beat_at = process.moved_at = now

    def _sentence(self, now: float) -> str:
        silence = now - self._answered
        if silence < self._timeout / 2:
            return hanging(self._seen, now, self._timeout)
        if silence < self._timeout:
            return ""
        host = "process 0"
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            host = f"the launcher on {os.environ.get('MASTER_ADDR')}"
        return (
            f"{host}, through which the processes find each other, has not answered for "
            f"{silence:.0f} s"
        )

    def _end(self, sentence: str) -> None:
        after = f"(timeout={self._timeout:g}): the job ends, and the same command resumes it"
        if self._is_first():
            # Not print: the main thread may hold the lock of sys.stderr.
            os.write(2, f"error: {sentence} {after}\n".encode())
        end_now(1)

    def _is_first(self) -> bool:
        """Whether no other process has noticed before; True if the store does not answer."""
        votes: list[int] = []

        def vote() -> None:
            with suppress(RuntimeError):
                votes.append(self._votes.add("ended", 1))

        thread = threading.Thread(target=vote, daemon=True)
        thread.start()
        thread.join(self._every)
        return votes in ([], [1])


def end_now(status: int) -> NoReturn:
    """End this process and its loader's, without the clean-up that may wait for other processes."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)
