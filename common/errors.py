"""Bad input: one readable sentence on stderr and a non-zero exit status."""

import io
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


def tell(error: BaseException) -> int:
    """Print what ended the program, on stderr; returns its exit status.

    A UserError is one sentence, Ctrl-C a word. Anything else is a bug and has a traceback.
    """
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

    Ctrl-C ends it with a word. Any other exception is a bug and keeps its traceback. File names
    that are not UTF-8 are printed escaped, on stdout as on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except (UserError, KeyboardInterrupt) as error:
        sys.exit(tell(error))


@contextmanager
def refusing(*kinds: type[Exception], what: str = "", also: str = "") -> Iterator[None]:
    """Turn these exceptions into UserError("{what} ({message}); {also}")."""
    try:
        yield
    except kinds as error:
        sentence = f"{what} ({reason(error)})" if what else str(error)
        raise UserError(f"{sentence}; {also}" if also else sentence) from error
