"""Compose the yaml files with the schema, and turn the result into plain objects."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, MissingMandatoryValue, OmegaConfBaseException

from common.errors import UserError, one_sentence, refusing
from configs.keys import Effect, fields_of, keys_of
from configs.schema import EvalConfig, TrainConfig

T = TypeVar("T")
PlainConfig = dict[str, Any]  # plain values, nested as in a yaml file
FlatConfig = dict[str, Any]  # the same by dotted key, {"model.name": "A"}
_TRAIN_KEYS = keys_of(TrainConfig)
_ADVICE = """quote lists for the shell, and odd names in lists again: 'images=["a,b.jpg",c.jpg]'"""
_FILES = ("checkpoint", "images")  # a name or a list of names


def register() -> None:
    """Register the schema with Hydra, before @hydra.main composes."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    ConfigStore.instance().store(name="eval_schema", node=EvalConfig)


def compose_config(overrides: Sequence[str], kind: type[T], program: str = "train") -> T:
    """The configuration of `python PROGRAM.py OVERRIDES`; raises UserError if Hydra refuses it."""
    register()
    folder = str(Path(__file__).parent)
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            raw = compose(program, as_typed(overrides, kind))
    except HydraException as error:
        raise UserError(_sentence(error, program)) from error
    return to_config(raw, kind)


def _sentence(error: HydraException, program: str) -> str:
    """Why Hydra refuses a command line, in one line without its search path."""
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError):
        return f"there is no key {cause.full_key}: `python {program}.py --help` lists all"
    if isinstance(cause, OmegaConfBaseException):
        return f"{error}: {str(cause).splitlines()[0]}"
    parts = str(error).partition("Config search path:")[0].strip().split("\n\n")
    return "; ".join(" ".join(part.split()) for part in parts)


def compose_early(kind: type[T], check: Callable[[T], None], program: str) -> T | None:
    """The configuration of this program's command line; None: options such as --cfg need Hydra.

    Ends the program with a sentence if the command line does not compose, or if `check` refuses it.
    Called before torch is loaded, which takes seconds.
    """
    arguments = sys.argv[1:]
    if any(argument.startswith("-") for argument in arguments):
        return None
    with one_sentence():
        config = compose_config(arguments, kind, program)
        check(config)
        return config


def as_typed(arguments: Sequence[str], kind: type) -> list[str]:
    """The arguments of a command line, with text quoted so that Hydra reads it as it was typed.

    Hydra takes 2026_11_25 and 1e3 unquoted for numbers, and cannot read `photo (1).jpg`. A leading
    ~/ becomes the user's home folder. Raises UserError for an argument that Hydra cannot read.
    """
    parser = OverridesParser.create()
    types = {name: each.type for name, each in fields_of(kind)}
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and not key.startswith("-"):
            name = key.lstrip("+")
            is_text = name in _FILES or types.get(name) in (str, str | None)
            is_null = value == "null" and types.get(name) is not str
            if name in _FILES and value.startswith("[") and value.endswith("]"):
                value = _quote_items(value)
            elif is_text and not is_null:
                value = _quote(value)
            with refusing(HydraException, what=f"cannot read {argument}", also=_ADVICE):
                parser.parse_override(f"{key}={value}")
        quoted.append(key + equals + value)
    return quoted


def _quote_items(value: str) -> str:
    """[a b,c] -> ['a b','c']; unchanged if an item is already quoted."""
    items = [item.strip() for item in value[1:-1].split(",")]
    if value == "[]" or any(item[:1] in ("'", '"') for item in items):
        return value
    return f"[{','.join(map(_quote, items))}]"


def _quote(value: str) -> str:
    """The value in the quotes of Hydra's grammar; unchanged if it is already quoted."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in ("'", '"'):
        return value
    return QuotedString(os.path.expanduser(value), Quote.single).with_quotes()


def to_config(raw: DictConfig, kind: type[T]) -> T:
    """The composed configuration as the schema's plain objects, interpolations resolved.

    Raises UserError for a missing value.
    """
    try:
        config = OmegaConf.to_object(raw)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} must be given: add {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    assert isinstance(config, kind)
    return config


def from_dict(values: PlainConfig, kind: type[T]) -> T:
    """The configuration of a checkpoint, from its plain values."""
    with refusing(OmegaConfBaseException, what="the configuration is of another version"):
        raw = OmegaConf.merge(OmegaConf.structured(kind), values)
    assert isinstance(raw, DictConfig)
    return to_config(raw, kind)


def to_dict(config: Any) -> PlainConfig:
    """A configuration as plain values, for yaml files and checkpoints."""
    return cast(PlainConfig, OmegaConf.to_container(OmegaConf.structured(config)))


def read_yaml(path: Path) -> PlainConfig:
    """A config.yaml as plain values; raises UserError if it is damaged."""
    with refusing(yaml.YAMLError, OSError, ValueError, what=f"{path} is damaged"):
        values = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (it holds no keys)")
    return {str(key): value for key, value in values.items()}


def flatten(values: Any, prefix: str = "") -> FlatConfig:
    """{"model": {"name": "A"}} -> {"model.name": "A"}; lists stay whole."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: FlatConfig = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


@dataclass(frozen=True)
class Change:
    """A key whose value differs between two training configurations."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"

    @property
    def resumable(self) -> bool:
        """Whether a resumed run may make it; False for keys that are not in the schema."""
        return self.key in _TRAIN_KEYS and _TRAIN_KEYS[self.key].resumable

    @property
    def effect(self) -> Effect:
        """Whether the run still belongs in the tables."""
        return _TRAIN_KEYS[self.key].effect if self.key in _TRAIN_KEYS else Effect.OTHER


def changes(old: PlainConfig | FlatConfig, new: PlainConfig | FlatConfig) -> list[Change]:
    """The keys that differ between two configurations, as plain values, sorted by name."""
    before, after = flatten(old), flatten(new)
    keys = sorted(before.keys() | after.keys())
    candidates = [Change(key, before.get(key), after.get(key)) for key in keys]
    return [change for change in candidates if change.old != change.new]
