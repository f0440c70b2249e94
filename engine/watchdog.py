"""Hung jobs: each process watches all, and ends the job with a sentence that names the culprit.

A process that is stopped, or whose storage or GPU no longer answers, leaves all others waiting in a
collective, whose own timeout names nobody. So every process posts two things to the store through
which the processes met: a heartbeat, by a thread, which stops when the process does; and how far
its main thread is. Each reader takes the times by its own clock.
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

_NAMED = 4  # processes described in a sentence


@dataclass(frozen=True)
class Sign:
    """What a process posts of itself."""

    who: str = ""  # host and process id
    beat: int = 0
    met: int = 0  # points reached at which all processes meet, such as batches and sums
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

    Stopped processes are named first. Otherwise it is those that have not moved and that the others
    wait for: processes that wait have met more often.
    """
    last = min(each.sign.met for each in seen)
    waited_for = [
        rank
        for rank, each in enumerate(seen)
        if each.sign.met == last
        and now - each.moved_at >= timeout
        and not (each.sign.left and all(other.sign.met == last for other in seen))
    ]
    silent = [(now - each.beat_at, r) for r, each in enumerate(seen) if not each.sign.left]
    if not waited_for and max(silent, default=(0.0, 0))[0] < timeout:
        return ""
    stopped = [rank for silence, rank in silent if silence >= timeout / 2]
    if stopped:
        silence = max(silence for silence, rank in silent if rank in stopped)
        return f"{_names(stopped, seen)} not answered for {silence:.0f} s"
    fewest = min(seen[rank].sign.moved for rank in waited_for)
    ranks = [rank for rank in waited_for if seen[rank].sign.moved == fewest]
    stuck = now - max(seen[rank].moved_at for rank in ranks)
    others = ", and the others wait" if len(ranks) < len(seen) else ""
    return f"{_names(ranks, seen)} made no progress for {stuck:.0f} s{others}"


def _names(ranks: list[int], seen: list[Seen]) -> str:
    """process 1 of 4 (host gpu7, pid 123, last at step 9) has"""
    known = [f"{seen[r].sign.who or 'never seen'}, last at {seen[r].sign.place}" for r in ranks]
    more = f"; and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    numbers = ", ".join(map(str, ranks[:_NAMED]))
    named = f"{numbers} of {len(seen)} ({'; '.join(known[:_NAMED])}{more})"
    return f"process {named} has" if len(ranks) == 1 else f"processes {named} have"


class Watch:
    """The watch of a single process: nobody waits for it, so there is nothing to do."""

    def alive(self, place: str = "") -> None:
        """This process has made progress, such as a batch of its share of the validation."""

    def meet(self, place: str = "") -> None:
        """This process has reached a point where all meet; all reach the same points."""

    def close(self) -> None:
        """This process ends."""


class Watchdog(Watch):
    """Ends the process if the job hangs; the first process to notice says why.

    The main thread of a hung job is in a collective that nothing wakes. So the process ends at
    once, with its loader's processes, and the job can resume from its last checkpoint.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: float) -> None:
        self._rank, self._timeout = rank, timeout
        self._every = min(timeout / 20, 10.0)
        # A thread that waits for an answer blocks its connection, so each has its own.
        self._posts, self._votes = (dist.PrefixStore("watchdog", store.clone()) for _ in range(2))
        self._mine = Sign(f"host {socket.gethostname()}, pid {os.getpid()}")
        now = time.monotonic()
        self._seen = [Seen(now, now) for _ in range(size)]
        self._answered = now
        self._lock = threading.Lock()  # of what has been seen
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=run, name="watchdog", daemon=True)
            for run in (self._post, self._judge)
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
        self._closing.set()
        for thread in self._threads:
            thread.join(self._every)  # a store that is gone must not hold up the end

    def _post(self) -> None:
        """Post our signs and read those of the others, until the end or until the store is gone."""
        keys = [f"process {rank}" for rank in range(len(self._seen))]
        beat, there = 0, set[int]()
        with suppress(RuntimeError):  # a broken connection stays broken
            while True:
                beat += 1
                left = self._closing.is_set()
                sign = replace(self._mine, beat=beat, left=left)
                self._posts.set(keys[self._rank], json.dumps(asdict(sign)))
                there |= {r for r, key in enumerate(keys) if r in there or self._posts.check([key])}
                posted = self._posts.multi_get([keys[rank] for rank in sorted(there)])
                with self._lock:
                    self._answered = time.monotonic()
                    for rank, text in zip(sorted(there), posted, strict=True):
                        self._seen[rank].update(Sign(**json.loads(text)), self._answered)
                if left:
                    return
                self._closing.wait(self._every)

    def _judge(self) -> None:
        """Check how old the signs are. Reads nothing: a store that hangs cannot block it."""
        last = time.monotonic()
        while not self._closing.wait(self._every):
            now = time.monotonic()
            with self._lock:
                if (
                    now - last > self._timeout / 4
                ):  # this process was stopped: its ages mean nothing
                    self._start_anew(now)
                last = now
                sentence = self._sentence(now)
            if sentence:
                after = (
                    f"(timeout={self._timeout:g}): the job ends, and the same command resumes it"
                )
                self._end(f"error: {sentence} {after}\n")

    def _start_anew(self, now: float) -> None:
        self._answered = now
        for each in self._seen:
            each.beat_at = each.moved_at = now

    def _sentence(self, now: float) -> str:
        silence = now - self._answered
        if silence < self._timeout / 2:
            return hanging(self._seen, now, self._timeout)
        if silence < self._timeout:
            return ""
        host = "process 0"
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            host = f"the launcher on {os.environ.get('MASTER_ADDR')}"
        return f"{host}, through which the processes find each other, has not answered for " + (
            f"{silence:.0f} s"
        )

    def _end(self, sentence: str) -> None:
        if self._is_first():
            os.write(2, sentence.encode())  # the main thread may hold the lock of sys.stderr
        end_now(1)

    def _is_first(self) -> bool:
        """Whether no other process has noticed before; if the store cannot tell, each speaks."""
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
