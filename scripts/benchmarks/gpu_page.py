"""The page that scripts/gpu_day.sh ends with: its JSON files and runs as Markdown.

`python -m scripts.benchmarks.gpu_page FOLDER` prints it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from statistics import median

import torch

from analysis.table import markdown_table
from common.files import read_json_lines
from common.machine import commit


def machine() -> str:
    """The GPU, its driver, and the versions of torch and of this project."""
    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU only"
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    except OSError:
        driver = ""
    versions = [f"torch {torch.__version__}", *([f"driver {driver}"] if driver else [])]
    return f"{card}, {', '.join(versions)}, {date.today()}, commit {commit() or 'unknown'}"


def benchmarks(folder: Path) -> Iterator[str]:
    """One table for each kind of benchmark."""
    for kind in ("train", "dense", "data"):
        rows: list[dict[str, object]] = []
        for path in sorted(folder.glob(f"{kind}*.json")):
            way = path.stem.rpartition("-")[2]  # of our training step: eager, compiled or triton
            extra = {"ours": way} if kind == "train" else {}
            rows += [row | extra for row in json.loads(path.read_text())["rows"]]
        if rows:
            cells = [[str(value) for value in row.values()] for row in rows]
            yield from ("", f"## benchmark.py {kind}", "", markdown_table(list(rows[0]), cells))


def losses(folder: Path) -> Iterator[str]:
    """The first, highest and last loss of each run, and its speed."""
    header = ["run", "steps", "first loss", "highest", "last"]
    header += ["images/s (median)", "data wait (median)"]
    rows = []
    for path in sorted(folder.glob("runs/*/metrics.jsonl")):
        lines = [line for line in read_json_lines(path) if line["kind"] == "train"]
        if lines:
            values = [line["loss"] for line in lines]
            speed = median(line["images_per_second"] for line in lines)
            wait = median(line["data_wait"] for line in lines)
            numbers = [f"{value:.3f}" for value in (values[0], max(values), values[-1])]
            steps = str(lines[-1]["step"])
            rows.append([path.parent.name, steps, *numbers, f"{speed:.0f}", f"{wait:.1%}"])
    if rows:
        yield from ("", "## Runs", "", markdown_table(header, rows))


def parts(folder: Path) -> Iterator[str]:
    """Which parts are done, and the last line of each."""
    yield from ("", "## Parts", "")
    for log in sorted(folder.glob("*.log")):
        done = log.with_suffix(".done").exists()
        last = log.read_text().strip().rpartition("\n")[2]
        yield f"- {log.stem}: {'done' if done else 'not done'}: `{last[:200]}`"


def main() -> None:
    """Print the page of the folder that the command line names."""
    folder = Path(sys.argv[1])
    lines = ["# A day on a GPU", "", machine(), *benchmarks(folder), *losses(folder)]
    print("\n".join([*lines, *parts(folder)]))


if __name__ == "__main__":
    main()
