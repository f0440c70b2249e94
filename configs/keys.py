"""What the schema says about a key besides its type: help, choices, and who may change it."""

from collections.abc import Iterator, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import partial
from typing import Any


class Effect(Enum):
    """Whether a run with another value than its experiment file's still belongs in the tables."""

    NONE = "none"  # yes: same numbers up to rounding, or shown beside them (data set, seed, length)
    NOTED = "noted"  # yes, with a note
    OTHER = "other"  # no: it is another experiment


@dataclass(frozen=True)
class Key:
    """One configuration key."""

    default: Any  # omegaconf's MISSING if a named choice (model=C) or the user gives the value
    text: str
    choices: tuple[str, ...]
    least: int | None  # the smallest valid value
    resumable: bool  # a run may resume with another value
    effect: Effect


def key(
    default: Any,
    text: str,
    *,
    choices: Sequence[str] = (),
    least: int | None = None,
    resumable: bool = False,
    effect: Effect | None = None,
) -> Any:
    """A field of a configuration's dataclass. Default `effect`: NONE if resumable, else OTHER."""
    effect = effect or (Effect.NONE if resumable else Effect.OTHER)
    metadata = {"key": Key(default, text, tuple(choices), least, resumable, effect)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


free = partial(key, resumable=True)  # changes no result, so a resumed run may change it
noted = partial(key, effect=Effect.NOTED)


def fields_of(kind: type, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """The dotted names and fields of all keys of a configuration class, in the schema's order."""
    for each in fields(kind):
        if isinstance(each.type, type) and is_dataclass(each.type):
            yield from fields_of(each.type, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, each


def keys_of(kind: type) -> dict[str, Key]:
    """The keys of a configuration class by dotted name, in the schema's order."""
    return {name: each.metadata["key"] for name, each in fields_of(kind)}
