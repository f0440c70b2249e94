"""The schema as text: `python train.py --help`, and the tables of keys in docs/.

`python -m configs.help` rewrites the tables.
"""

import json
import sys
import textwrap
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from common.errors import one_sentence
from configs.keys import Key, keys_of
from configs.schema import EvalConfig, TrainConfig

FOLDER = Path(__file__).parent
PAGES = {"docs/training.md": TrainConfig, "docs/evaluation.md": EvalConfig}
START, END = "<!-- keys -->\n", "<!-- /keys -->"
_PROGRAMS = {TrainConfig: "train", EvalConfig: "eval"}
_WIDTH, _LEFT = 98, 31  # of --help and of its left column, characters


def sections(kind: type) -> dict[str, dict[str, Key]]:
    """Keys by section title and name: the program's own and named choices, then each group's."""
    top: dict[str, Key] = {}
    groups = {}
    for field in fields(kind):
        group = field.type
        if not (isinstance(group, type) and is_dataclass(group)):
            top[field.name] = field.metadata["key"]
            continue
        keys = keys_of(group)
        if field.default == MISSING:
            name_key = keys.pop("name")
            top[field.name] = _named_choice(field.name, _PROGRAMS[kind], name_key, _title(group))
        groups[_title(group)] = {f"{field.name}.{name}": key for name, key in keys.items()}
    return {_title(kind): top, **groups}


def _title(kind: type) -> str:
    return (kind.__doc__ or "").splitlines()[0].removesuffix(".")


def _named_choice(name: str, program: str, key: Key, text: str) -> Key:
    """The key that chooses a yaml file of configs/NAME/; PROGRAM.yaml lists the default."""
    choices = sorted(path.stem for path in (FOLDER / name).glob("*.yaml"))
    defaults: Any = OmegaConf.load(FOLDER / f"{program}.yaml").defaults
    default = next(line[name] for line in defaults if not isinstance(line, str) and name in line)
    return replace(key, default=default, text=text, choices=tuple(choices))


def _default(key: Key) -> str:
    default = key.default if isinstance(key.default, str) else json.dumps(key.default)
    return "..." if default == MISSING else default.replace("${", "{")


def help_text(kind: type) -> str:
    """What `python PROGRAM.py --help` prints."""
    program = f"python {_PROGRAMS[kind]}.py"
    training = kind is TrainConfig
    lines = [
        f"{program} [KEY=VALUE ...]",
        "",
        "Keys with their defaults; ...: to be given, or set by a named choice such as model=C.",
        f"{program} KEY=VALUE ... --cfg job --resolve shows the values that a command uses.",
        "Quote lists for the shell." + " A resumed run may change the keys marked *." * training,
    ]
    for title, keys in sections(kind).items():
        lines += ["", title]
        for name, key in keys.items():
            left = f"{'*' if training and key.resumable else ' '} {name}={_default(key)}"
            choices = f" {{{', '.join(key.choices)}}}" if key.choices else ""
            text = textwrap.wrap(key.text + choices, _WIDTH - _LEFT)
            if len(left) < _LEFT:
                left = left.ljust(_LEFT) + text.pop(0)
            lines += [left, *(" " * _LEFT + line for line in text)]
    return "\n".join(lines)


def answer_help(kind: type) -> None:
    """Print the help and exit if the command line asks for it."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        with one_sentence():
            print(help_text(kind))
        sys.exit()


def key_tables(kind: type) -> str:
    """The keys as Markdown, one table per section."""
    training = kind is TrainConfig
    lines = []
    for title, keys in sections(kind).items():
        lines += [f"**{title}**", ""]
        lines.append("| Key | Default | Meaning |" + " Change on resume |" * training)
        lines.append("|---|---|---|" + "---|" * training)
        for name, key in keys.items():
            choices = ": " * bool(key.choices) + " ".join(f"`{choice}`" for choice in key.choices)
            cells = [f"`{name}`", f"`{_default(key)}`", key.text.replace("|", r"\|") + choices]
            cells += ["yes" if key.resumable else ""] * training
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def with_tables(page: str, kind: type) -> str:
    """A page with the tables between its markers; unchanged if it has no markers."""
    head, start, rest = page.partition(START)
    _, end, tail = rest.partition(END)
    return head + start + key_tables(kind) + end + tail if start and end else page


if __name__ == "__main__":
    for name, kind in PAGES.items():
        path = FOLDER.parent / name
        path.write_text(with_tables(path.read_text(), kind))
