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
    """The program cannot do what the user asked for; the message is a sentence that says why."""

    status = 1  # the program's exit status
    prefix = "error: "


class Stopped(UserError):
    """A signal asked the program to stop. Its work is saved; the same command continues it."""

    status = 75  # EX_TEMPFAIL
    prefix = ""


def reason(error: BaseException) -> str:
    """The cause, in the operating system's words if it raised the error."""
    return str(getattr(error, "strerror", None) or error)


def has_lost_reader() -> bool:
    """Whether the reader of stdout or stderr has left, as `| head` does; discards that output.

    Otherwise the flush at the end of the program would fail.
    """
    pipes = select.poll()
    for number in (1, 2):
        pipes.register(number, select.POLLERR)
    lost = [number for number, event in pipes.poll(0) if event & select.POLLERR]
    for number in lost:
        _discard(number)
    return bool(lost)


def _discard(number: int) -> None:
    """Discard what is written to this file descriptor from now on."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), number)


def tell(error: BaseException) -> int:
    """Print on stderr what ended the program; returns its exit status.

    For a UserError that is one sentence, for Ctrl-C one word, for `| head` nothing. Anything else
    is a bug and gets a traceback.
    """
    if has_lost_reader() and isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    if isinstance(error, UserError):
        print(f"{error.prefix}{error}", file=sys.stderr, flush=True)
        return error.status
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT  # as in a shell
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    traceback.print_exception(error)
    return 1


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the program with `error: ...` on stderr and the exit status of a UserError raised inside.

    Ctrl-C and `| head` end it as in `tell`, output to a full disk with `error: ...`. Any other
    exception is a bug and keeps its traceback. File names that are not UTF-8 are printed escaped.
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
        _discard(1)  # or the end of the program would try to write what is left
        sys.exit(tell(UserError(f"cannot write the output ({reason(error)})")))


@contextmanager
def refusing(*kinds: type[Exception], what: str = "", also: str = "") -> Iterator[None]:
    """Turn exceptions of these kinds into UserError("{what} ({message}); {also}")."""
    try:
        yield
    except kinds as error:
        sentence = f"{what} ({reason(error)})" if what else str(error)
        raise UserError(f"{sentence}; {also}" if also else sentence) from error
