"""README and docs: every command runs, as far as possible on a CPU, and every path exists."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.schema import EvalConfig, TrainConfig
from configs.store import compose_config
from configs.validate import validate, validate_eval
from tests.conftest import ROOT, run_program
from tests.tars import write_official

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
Command = tuple[str, list[str]]  # the page that shows it, its words
STUBS = ("python", "torchrun", "sbatch", "scripts/quickstart.sh", "scripts/test.sh")
STUB = """#!{python}
import json, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
"""


def shown(tmp: Path) -> list[Command]:
    """All commands, as bash itself reads the code blocks."""
    commands = []
    for number, page in enumerate(DOCS):
        work, log = tmp / str(number), tmp / f"{number}.jsonl"
        (work / "scripts").mkdir(parents=True)
        (work / "bin").mkdir()
        for name in STUBS:
            path = work / (name if "/" in name else f"bin/{name}")
            path.write_text(STUB.format(python=sys.executable, log=str(log), name=name))
            path.chmod(0o755)
        text = page.read_text()
        fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        blocks = [block for language, block in fenced if not language]
        blocks += re.findall(r"`(python [^\s`]+ [^`]+)`", text)
        environment = {**os.environ, "PATH": f"{work / 'bin'}:{os.environ['PATH']}"}
        subprocess.run(
            ["bash", "-eu", "-c", "\n".join(blocks)], cwd=work, env=environment, check=True
        )
        lines = log.read_text().splitlines() if log.exists() else []
        for words in map(json.loads, lines):
            if "scripts/slurm/array.sbatch" in words:  # each line of the file is a run
                table = words.index("scripts/slurm/array.sbatch") + 1
                runs = (work / words[table]).read_text().splitlines()
                commands += [
                    (page.name, ["python", "train.py", *run.split(), *words[table + 1 :]])
                    for run in runs
                ]
            else:
                commands.append((page.name, words))
    return commands


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[Command]:
    return shown(tmp_path_factory.mktemp("docs"))


def of(commands: list[Command], program: str) -> list[list[str]]:
    """The arguments of all commands that run a program, without duplicates."""
    every = [words[words.index(program) + 1 :] for _, words in commands if program in words]
    assert every
    return [list(words) for words in dict.fromkeys(map(tuple, every))]


def test_training_commands_are_valid(commands: list[Command]) -> None:
    for arguments in [*of(commands, "train.py"), *of(commands, "scripts/slurm/train.sbatch")]:
        if not {"--help", "--cfg"} & set(arguments):
            config = compose_config(arguments, TrainConfig)
            validate(config, num_processes=8)


def test_evaluation_commands_are_valid(commands: list[Command]) -> None:
    for arguments in [*of(commands, "eval.py"), *of(commands, "scripts/slurm/eval.sbatch")]:
        if "--help" not in arguments:
            validate_eval(compose_config(arguments, EvalConfig, "eval"))


def test_every_program_exists(commands: list[Command]) -> None:
    for page, words in commands:
        if "-m" in words:
            program = words[words.index("-m") + 1].replace(".", "/") + ".py"
        else:
            program = next(word for word in words if word.endswith((".py", ".sh", ".sbatch")))
        assert (ROOT / program).is_file(), f"{page}: {' '.join(words)}"


def test_prepare_commands_run(commands: list[Command], tmp_path: Path) -> None:
    root = write_official(tmp_path / "official").root
    names = {"/imagenet": str(root), "OUT": str(tmp_path / "out"), "100": "2", "200": "1"}
    for number, arguments in enumerate(of(commands, "scripts/prepare_imagenet.py")):
        names["OUT"] = str(tmp_path / str(number))
        words = [names.get(word, word) for word in arguments]
        more = ["--out", str(tmp_path / "mean.npy")] if words[0] == "mean" else []
        done = run_program("scripts/prepare_imagenet.py", *words, *more, check=False)
        # `check` says that the small set of this test is not ImageNet.
        assert done.returncode == (words[0] == "check"), done.stdout + done.stderr


def test_reproduce_commands_are_valid(
    commands: list[Command],
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reproduce = importlib.import_module("scripts.reproduce")
    names = {"/imagenet": str(small), "/any/image/folder": str(small)}
    for arguments in of(commands, "scripts/reproduce.py"):
        words = [names.get(word, word) for word in arguments]
        if words[0] in ("analysis", "start", "report", "compare"):  # which have tests of their own
            reproduce.build_parser().parse_args(words)
        else:
            dry = [] if "--dry-run" in words else ["--dry-run"]
            reproduce.main([*words, *dry, "--runs", str(tmp_path)])
            assert re.search("python|sbatch|torchrun", capsys.readouterr().out)


def test_benchmark_and_describe_commands_are_valid(
    commands: list[Command], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in of(commands, "scripts/benchmark.py"):
        importlib.import_module("scripts.benchmark").build_parser().parse_args(arguments)
    for arguments in of(commands, "scripts/describe.py"):
        importlib.import_module("scripts.describe").main(arguments)
        assert "conv1" in capsys.readouterr().out


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_paths_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    rooms = "|".join(path.name for path in ROOT.iterdir() if path.is_dir())
    for path in re.findall(rf"`((?:{rooms})/[\w./*-]+\.(?:py|yaml|sh|md|sbatch))`", text):
        assert list(ROOT.glob(path)), path
    for path in re.findall(r"`(test_\w+\.py)`", text):
        assert (ROOT / "tests" / path).is_file(), path
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link
