"""One page that shows everything: results/README.md, and the same as a single HTML file."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import markdown

from analysis.report.runs import Run
from analysis.report.tables import Table, number, short

_HEAD = """\
# Results

The paper's tables and figures beside ours. `python scripts/reproduce.py report` writes this page
from the records of runs in `records/`; nothing is typed. Errors are percent. "± x" is the standard
deviation over seeds; the 95 % interval is Wilson's for the number of images, averaged over seeds.
Networks are tested as they are after the last step. What has no run says so.
"""

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1100px;
       margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; display: block;
        overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: 4px 10px; text-align: left; }
th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
code, pre { background: #f4f4f4; font-size: 13px; }
pre { padding: 8px; overflow-x: auto; }
h2 { border-top: 1px solid #ddd; padding-top: 1em; margin-top: 2em; }
"""


@dataclass(frozen=True)
class Section:
    """A table, figures, or both."""

    table: Table | None
    title: str
    figures: Sequence[str] = ()  # file names without .png, .svg
    state: str = ""  # told where there is no table and no figure
    note: str = field(default="")

    @property
    def has_run(self) -> bool:
        """Whether it shows anything that was trained."""
        rows = self.table.rows if self.table else []
        return bool(self.figures) or any(row.get("runs") for row in rows)

    @property
    def order(self) -> tuple[int, str]:
        """The paper's: tables, figures, then what is in the text."""
        kinds = ("Table", "Fig.", "Sec.")
        return kinds.index(self.title.split()[0]), self.title.split(":")[0]

    @property
    def anchor(self) -> str:
        """What the list of what was run links to."""
        return self.figures[0] if self.table is None else self.table.name

    def markdown(self) -> str:
        parts = [f'<a id="{self.anchor}"></a>'] if self.has_run else []
        parts.append(f"## {self.title}")
        parts += [note for note in (self.note, self.table.note if self.table else "") if note]
        parts += [f"![{self.title}]({name}.png)" for name in self.figures]
        if self.table:
            parts.append(self.table.markdown().rstrip())
        elif not self.figures:
            parts.append(self.state)
        files = [f"[{name}.svg]({name}.svg)" for name in self.figures]
        if self.table:
            files = [f"[{self.table.name}.csv]({self.table.name}.csv)", *files]
        return "\n\n".join([*parts, *([", ".join(files)] if files else [])])


def write_page(sections: Sequence[Section], runs: Sequence[Run], results: Path) -> Path:
    """README.md and report.html; returns the path of the former."""
    shown = [f"- [{one.title}](#{one.anchor})" for one in sections if one.has_run]
    told = "Run so far:\n\n" + "\n".join(shown) if shown else "No training run is finished yet."
    parts = [_HEAD, told, *(section.markdown() for section in sections)]
    parts += [_first_steps(results), _propagation(results)]
    parts += [_runs(runs), _commands(runs)]
    text = "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
    (results / "README.md").write_text(text)
    (results / "report.html").write_text(_html(text, results))
    return results / "README.md"


def _first_steps(results: Path) -> str:
    """A link to the page of `reproduce.py start`, if there is one."""
    if not (results / "start" / "records").is_dir():
        return ""
    return (
        "## The first steps of training\n\n[start/README.md](start/README.md): what the paper's "
        "recipe does in its first steps, to the letter and with the project's default."
    )


def _propagation(results: Path) -> str:
    """The page of `reproduce.py analysis`, one level down."""
    path = results / "analysis" / "README.md"
    if not path.is_file():
        return "## Signal propagation (Sec. 2.2)\n\nnot run: `python scripts/reproduce.py analysis`"
    text = re.sub(r"\]\((?!https?:|#)", "](analysis/", path.read_text())
    return re.sub(r"^#", "##", text, flags=re.MULTILINE)


def _runs(runs: Sequence[Run]) -> str:
    """Every run there is a record of, also those that no table counts."""
    if not runs:
        return "## Runs\n\nnone yet"
    lines = [
        "## Runs",
        "",
        "| run | data | trained | state | images/s | hours | commit | remarks |",
        "|---|---|--:|---|--:|--:|---|---|",
    ]
    for run in runs:
        state = "finished" if run.finished else "partial"
        lines.append(
            f"| {run.name} | {run.source or run.data} | {run.length if run.epochs else '–'} | "
            f"{state if run.epochs else 'tested'} | {number(run.images_per_second, 1)} | "
            f"{number(run.hours) if run.hours else '–'} | "
            f"{short(run.commit) if run.commit else '–'} | {_remarks(run)} |"
        )
    return "\n".join(lines)


def _remarks(run: Run) -> str:
    remarks = [f"in no table, differs from its file: {'; '.join(run.changed)}"] * bool(run.changed)
    remarks += [f"differs in {what}" for what in run.noted]
    return "; ".join(remarks).replace("|", "\\|")


def _commands(runs: Sequence[Run]) -> str:
    """What made the runs, as far as reproduce.py started them."""
    lines = [s["command"] for run in runs for s in run.sessions if s.get("status") == 0]
    if not lines:
        return ""
    return "\n".join(["## Commands", "", "```", *dict.fromkeys(lines), "```"])


def _html(text: str, results: Path) -> str:
    """The page as one file: images inside, links to other files of the folder as plain text."""
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    body = re.sub(r'<a href="(?!https?:|#)[^"]*">(.*?)</a>', r"\1", body)

    def inline(match: "re.Match[str]") -> str:
        path = results / match[1]
        if not path.is_file():
            return match[0]
        return f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"'

    body = re.sub(r'src="([^":]+\.png)"', inline, body)
    head = f'<meta charset="utf-8"><title>Results</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>\n{body}\n</body></html>\n"
