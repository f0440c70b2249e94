"""The page with all tables and figures: results/README.md, and the same as one HTML file."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import markdown

from analysis.report.runs import Run
from analysis.table import BLANK, Table, markdown_table, number, short

_HEAD = """\
# Results

The paper's tables and figures beside ours. `python scripts/reproduce.py report` writes this page
from the records of runs in `records/`; no number is typed. Errors are percent. "± x" is the
standard deviation over seeds; the 95 % interval is Wilson's for the number of images, averaged over
seeds. Networks are tested as they are after the last step. Rows without a run say so.
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
    """A section of the page: a table, figures, or both."""

    title: str
    table: Table | None = None
    figures: Sequence[str] = ()  # file names without .png, .svg
    state: str = ""  # shown if there is neither a table nor a figure
    note: str = ""

    @staticmethod
    def of(table: Table, figures: Sequence[str] = ()) -> "Section":
        """The section of a table, which has its title."""
        return Section(table.title, table, figures)

    @property
    def has_run(self) -> bool:
        """Whether it shows anything that was trained."""
        return bool(self.figures) or (self.table is not None and self.table.has_runs)

    @property
    def order(self) -> tuple[int, str]:
        """A sort key: tables, then figures, then what stands in the text of the paper."""
        kinds = ("Table", "Fig.", "Sec.")
        return kinds.index(self.title.split()[0]), self.title.split(":")[0]

    @property
    def anchor(self) -> str:
        """The target of the link at the top of the page."""
        return self.table.name if self.table else self.figures[0]

    def markdown(self) -> str:
        parts = [f'<a id="{self.anchor}"></a>'] if self.has_run else []
        parts += [f"## {self.title}", self.note]
        images = [f"![{self.title}]({name}.png)" for name in self.figures]
        files = [f"{name}.svg" for name in self.figures]
        if self.table:
            parts += [self.table.note, *images, self.table.markdown().rstrip()]
            files = [f"{self.table.name}.csv", *files]
        else:
            parts += images or [self.state]
        parts.append(", ".join(f"[{file}]({file})" for file in files))
        return "\n\n".join(filter(None, parts))


def write_page(sections: Sequence[Section], runs: Sequence[Run], results: Path) -> Path:
    """Write README.md and report.html; returns the path of README.md."""
    links = [f"- [{each.title}](#{each.anchor})" for each in sections if each.has_run]
    summary = "Run so far:\n\n" + "\n".join(links) if links else "No training run is finished yet."
    parts = [_HEAD, summary, *(section.markdown() for section in sections)]
    parts += [_first_steps(results), _propagation(results), _run_table(runs), _commands(runs)]
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
    """The page of `reproduce.py analysis`, as a section: links and headings moved down a level."""
    path = results / "analysis" / "README.md"
    if not path.is_file():
        return "## Signal propagation (Sec. 2.2)\n\nnot run: `python scripts/reproduce.py analysis`"
    text = re.sub(r"\]\((?!https?:|#)", "](analysis/", path.read_text())
    return re.sub(r"^#", "##", text, flags=re.MULTILINE)


def _run_table(runs: Sequence[Run]) -> str:
    """Every recorded run, also those that stand in no table."""
    if not runs:
        return "## Runs\n\nnone yet"
    header = ["run", "data", "trained", "state", "images/s", "hours", "commit", "remarks"]
    rows = [
        [
            run.name,
            run.source or run.data,
            run.length if run.epochs else BLANK,
            ("finished" if run.finished else "partial") if run.epochs else "tested",
            number(run.images_per_second, ".1f"),
            number(run.hours or None),
            short(run.commit),
            _remarks(run),
        ]
        for run in runs
    ]
    return "## Runs\n\n" + markdown_table(header, rows, "llrlrrll")


def _remarks(run: Run) -> str:
    remarks = [f"differs in {change}" for change in run.noted]
    if run.changed:
        remarks.insert(0, f"in no table, differs from its file: {'; '.join(run.changed)}")
    return "; ".join(remarks).replace("|", "\\|")


def _commands(runs: Sequence[Run]) -> str:
    """The commands of reproduce.py that succeeded, each once."""
    lines = [session.command for run in runs for session in run.sessions if session.status == 0]
    if not lines:
        return ""
    return "\n".join(["## Commands", "", "```", *dict.fromkeys(lines), "```"])


def _html(text: str, results: Path) -> str:
    """The page as a single file: images are embedded, links to other files are plain text."""
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    body = re.sub(r'<a href="(?!https?:|#)[^"]*">(.*?)</a>', r"\1", body)

    def embed(match: re.Match[str]) -> str:
        path = results / match[1]
        if not path.is_file():
            return match[0]
        return f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"'

    body = re.sub(r'src="([^":]+\.png)"', embed, body)
    head = f'<meta charset="utf-8"><title>Results</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>\n{body}\n</body></html>\n"
