"""The schema for people: `python train.py --help`, and the tables of keys in docs/.

`python -m configs.help` writes the tables again.
"""

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from common.errors import one_sentence
from configs.keys import Key
from configs.schema import EvalConfig, TrainConfig

FOLDER = Path(__file__).parent
PAGES = {"docs/training.md": TrainConfig, "docs/evaluation.md": EvalConfig}
START, END = "<!-- keys -->\n", "<!-- /keys -->"
_PROGRAMS = {TrainConfig: "train", EvalConfig: "eval"}
_WIDTH, _LEFT = 98, 31  # characters of --help


@dataclass(frozen=True)
class Row:
    """One key."""

    name: str
    default: str
    text: str
    choices: Sequence[str]
    resumable: bool


def sections(kind: type) -> dict[str, list[Row]]:
    """By title: the program's own keys, with the named choices first, then those of each group."""
    top: list[Row] = []
    groups = {}
    for each in fields(kind):
        if not (isinstance(each.type, type) and is_dataclass(each.type)):
            top.append(_row(each.name, each.metadata["key"]))
            continue
        keys = {
            name: field.metadata["key"] for name, field in each.type.__dataclass_fields__.items()
        }
        if each.default == MISSING:
            top.append(_named_choice(each.name, each.type, _PROGRAMS[kind], keys.pop("name")))
        groups[_title(each.type)] = [_row(f"{each.name}.{n}", key) for n, key in keys.items()]
    return {_title(kind): top, **groups}


def _title(kind: type) -> str:
    return (kind.__doc__ or "").splitlines()[0].removesuffix(".")


def _named_choice(name: str, kind: type, program: str, key: Key) -> Row:
    """A folder of yaml files, and which of them the defaults list of PROGRAM.yaml takes."""
    files = sorted(path.stem for path in (FOLDER / name).glob("*.yaml"))
    defaults: Any = OmegaConf.load(FOLDER / f"{program}.yaml").defaults
    default = next(line[name] for line in defaults if not isinstance(line, str) and name in line)
    return Row(name, default, _title(kind), files, key.resumable)


def _row(name: str, key: Key) -> Row:
    default = key.default if isinstance(key.default, str) else json.dumps(key.default)
    default = "..." if default == MISSING else default.replace("${", "{")
    return Row(name, default, key.text, key.choices, key.resumable)


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
    for title, rows in sections(kind).items():
        lines += ["", title]
        for row in rows:
            left = f"{'*' if training and row.resumable else ' '} {row.name}={row.default}"
            choices = f" {{{', '.join(row.choices)}}}" if row.choices else ""
            text = textwrap.wrap(row.text + choices, _WIDTH - _LEFT)
            if len(left) < _LEFT:
                left = left.ljust(_LEFT) + text.pop(0)
            lines += [left, *(" " * _LEFT + line for line in text)]
    return "\n".join(lines)


def answer_help(kind: type) -> None:
    """Print the help and leave, if the command line asks for it."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        with one_sentence():
            print(help_text(kind))
        sys.exit()


def key_tables(kind: type) -> str:
    """The keys as Markdown, one table for each section."""
    training = kind is TrainConfig
    lines = []
    for title, rows in sections(kind).items():
        lines += [f"**{title}**", ""]
        lines.append("| Key | Default | Meaning |" + " Change on resume |" * training)
        lines.append("|---|---|---|" + "---|" * training)
        for row in rows:
            choices = ": " * bool(row.choices) + " ".join(f"`{choice}`" for choice in row.choices)
            cells = [f"`{row.name}`", f"`{row.default}`", row.text.replace("|", r"\|") + choices]
            cells += ["yes" if row.resumable else ""] * training
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def with_tables(page: str, kind: type) -> str:
    """A page with the tables between its markers; as it is if it has none."""
    head, start, rest = page.partition(START)
    _, end, tail = rest.partition(END)
    return head + start + key_tables(kind) + end + tail if start and end else page


if __name__ == "__main__":
    for name, kind in PAGES.items():
        path = FOLDER.parent / name
        path.write_text(with_tables(path.read_text(), kind))
