"""Bad input: one readable sentence on stderr and a non-zero exit status."""

import errno
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What the user asked for cannot be done; the message is one sentence that says why."""

    status = 1  # the program's exit status
    prefix = "error: "


class Stopped(UserError):
    """A signal asked the program to stop. Its work is saved, and the same command continues it."""

    status = 75  # EX_TEMPFAIL
    prefix = ""


def reason(error: BaseException) -> str:
    """The cause, in the operating system's words if it raised the error."""
    return str(getattr(error, "strerror", None) or error)


def has_lost_reader() -> bool:
    """Whether whoever read stdout or stderr has left, as `| head` does; from then on it is dropped.

    The flush at the program's end would fail otherwise.
    """
    pipes = select.poll()
    for number in (1, 2):
        pipes.register(number, select.POLLERR)
    lost = [number for number, event in pipes.poll(0) if event & select.POLLERR]
    for number in lost:
        _drop(number)
    return bool(lost)


def _drop(number: int) -> None:
    """Let what is written to this descriptor go nowhere."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), number)


def tell(error: BaseException) -> int:
    """Print what ended the program, on stderr; returns its exit status.

    A UserError is one sentence, Ctrl-C a word, a reader of its output that has left is nothing.
    Anything else is a bug and has a traceback.
    """
    if has_lost_reader() and isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    if isinstance(error, UserError):
        print(f"{error.prefix}{error}", file=sys.stderr, flush=True)
        return error.status
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT  # as shells have it
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    traceback.print_exception(error)
    return 1


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn a UserError raised inside into `error: ...` on stderr and its exit status.

    Ctrl-C ends it with a word, `| head` without one, and output to a full disk with the system's
    sentence. Any other exception is a bug and keeps its traceback. File names that are not UTF-8
    are printed escaped, on stdout as on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        if sys.stdout:  # None where it is closed
            sys.stdout.flush()
    except (UserError, KeyboardInterrupt, BrokenPipeError) as error:
        sys.exit(tell(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop(1)  # what is left of the output, which the end of the program would try to write
        sys.exit(tell(UserError(f"cannot write the output ({reason(error)})")))


@contextmanager
def refusing(*kinds: type[Exception], what: str = "", also: str = "") -> Iterator[None]:
    """Turn these exceptions into UserError("{what} ({message}); {also}")."""
    try:
        yield
    except kinds as error:
        sentence = f"{what} ({reason(error)})" if what else str(error)
        raise UserError(f"{sentence}; {also}" if also else sentence) from error
