"""How bad input is refused: one readable sentence on stderr and a non-zero exit status."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What the user asked for cannot be done; the message is one sentence that says why."""


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn a UserError raised inside into `error: ...` on stderr and exit status 1.

    Any other exception is a defect of ours and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Raise UserError with the message of any of these exceptions raised inside."""
    try:
        yield
    except kinds as error:
        raise UserError(str(error)) from error
