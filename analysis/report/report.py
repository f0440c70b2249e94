"""The results folder: every table and figure beside the paper's, one page in Markdown and HTML."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from analysis.report.curves import curves_of, draw_curves
from analysis.report.examples import examples, read_saved
from analysis.report.figures import (
    class_name,
    draw_class_differences,
    draw_class_errors,
    draw_slopes,
)
from analysis.report.page import Section, write_page
from analysis.report.paper import (
    CURVE_FIGURES,
    DENSE,
    ENSEMBLE,
    ERROR_TABLES,
    FIG7_BASELINE,
    SCALED_TARGETS,
    SLOPE_EXPERIMENTS,
    CurveFigure,
    ErrorTable,
)
from analysis.report.runs import Run
from analysis.report.selection import Edition, choose, chosen_result, editions
from analysis.report.summaries import architecture_table, curve_table, slope_table
from analysis.report.tables import error_table
from common.errors import refusing
from common.style import save_figure, styled
from configs.store import read_yaml
from evaluation.pictures import draw_pictures

_ENSEMBLE_NAME = "six models (Table 7)"


def write_report(runs: Sequence[Run], results: Path, runs_folder: Path) -> Path:
    """Write all tables, figures and the pages from the records of runs; returns README.md's path.

    Only the photographs of Figs. 4 and 5 need more than records: saved predictions in
    `runs_folder`, and the images. Raises UserError if something cannot be written.
    """
    sections: list[Section] = []
    with styled(), refusing(OSError, what=f"cannot write into {results}"):
        results.mkdir(parents=True, exist_ok=True)
        for edition in editions(runs):
            writer = _Writer(results, edition, [run for run in runs if edition.counts(run)])
            sections += writer.sections(runs_folder)
        for section in sections:
            if section.table:
                stem = results / section.table.name
                title = f"# {section.title}\n\n{section.table.note}\n\n".replace("\n\n\n\n", "\n\n")
                stem.with_name(f"{stem.name}.md").write_text(title + section.table.markdown())
                stem.with_name(f"{stem.name}.csv").write_text(section.table.csv())
        return write_page(sections, runs, results)


class _Writer:
    """Writes one edition's figures, and says what its page shows."""

    def __init__(self, results: Path, edition: Edition, runs: Sequence[Run]) -> None:
        self.results, self.edition, self.runs = results, edition, runs

    def sections(self, runs_folder: Path) -> list[Section]:
        """In the paper's order; of another edition only what there are runs for."""
        found = []
        if self.edition.is_paper:
            found += [self.slopes(), Section(table := architecture_table(), table.title)]
        found += [self.errors(table) for table in ERROR_TABLES if self.has(table)]
        found += [self.curves(figure) for figure in CURVE_FIGURES if self.has_curves(figure)]
        if not self.edition.scaled:
            found += [*self.pictures(runs_folder), *self.classes()]
        return sorted(found, key=lambda section: section.order)

    def title(self, text: str) -> str:
        """A title that says what it is not of."""
        if self.edition.is_paper:
            return text
        sources = " and ".join(sorted({run.source for run in self.runs if run.source}))
        how = "SCALED DOWN" if self.edition.scaled else "NOT ImageNet"
        where = {"imagenet": "on ImageNet"}.get(self.edition.data, f'on images of "{sources}"')
        return f"{text.replace(' at scale 256', '').partition(', dense')[0]} – {how}, {where}"

    def has(self, table: ErrorTable) -> bool:
        return self._shows(table.name, [row.experiment for row in table.rows if row.experiment])

    def has_curves(self, figure: CurveFigure) -> bool:
        return self._shows(figure.name, [name for _, name in figure.curves])

    def _shows(self, name: str, experiments: Sequence[str]) -> bool:
        """Whether this edition has a table or figure of these experiments."""
        if self.edition.is_paper:
            return True
        wanted = {self.edition.experiment(experiment) for experiment in experiments}
        known = name in SCALED_TARGETS or not self.edition.scaled
        return known and any(run.experiment in wanted for run in self.runs)

    def figure(self, name: str, drawn: Figure | None) -> list[str]:
        """Write a figure, or remove the one that nothing supports any more."""
        name += self.edition.suffix
        if drawn is not None:
            save_figure(drawn, self.results, name)
            return [name]
        for kind in ("png", "svg"):
            (self.results / f"{name}.{kind}").unlink(missing_ok=True)
        return []

    def errors(self, table: ErrorTable) -> Section:
        title = self.title(table.title)
        return Section(error_table(table, self.edition, self.runs, title), title)

    def slopes(self) -> Section:
        table = slope_table(self.runs)
        shared, wise = (choose(self.runs, self.edition, name) for name in SLOPE_EXPERIMENTS)
        partial = [c.state for c in (shared, wise) if c.state.startswith("partial")]
        title = f"{table.title} ({'; '.join(partial)})" if partial else table.title
        any_run = [run for run in [*shared.runs, *wise.runs] if run.slopes]
        drawn = draw_slopes(shared.runs, wise.runs, title) if any_run else None
        return Section(table, table.title, self.figure("table1", drawn))

    def curves(self, figure: CurveFigure) -> Section:
        title = self.title(figure.title)
        curves = curves_of(figure, self.edition, self.runs)
        drawn = draw_curves(curves, title, self.edition) if curves else None
        table = curve_table(figure, self.edition, self.runs, title)
        return Section(table, title, self.figure(figure.name, drawn))

    def classes(self) -> list[Section]:
        """Figs. 6 and 7: of the ensemble, and of it against model A with ReLU."""
        own, new = chosen_result(self.runs, self.edition, ENSEMBLE, DENSE)
        base, old = chosen_result(self.runs, self.edition, FIG7_BASELINE, DENSE)
        sections = []
        title = self.title("Fig. 6: top-5 error of each class, six models together")
        paper, drawn = self.edition.is_paper, None
        if new:
            drawn = draw_class_errors(new[0][1]["per_class"], title, paper)
        files = self.figure("fig6", drawn)
        sections.append(Section(None, title, files, own.state))
        title = self.title("Fig. 7: six models together, less model A with ReLU, class by class")
        drawn = None
        if new and old:
            names = (_ENSEMBLE_NAME, "A, ReLU, multi-scale")
            both = (new[0][1]["per_class"], old[0][1]["per_class"])
            drawn = draw_class_differences(*both, title, names, paper)
        state = own.state if not own.runs else base.state
        note = "The paper compares with its team's entry of 2014, which we do not have."
        sections.append(Section(None, title, self.figure("fig7", drawn), state, note))
        shown = self.edition.is_paper or new
        return sections if shown else []

    def pictures(self, runs_folder: Path) -> list[Section]:
        """Figs. 4 and 5; drawn where predictions and images are at hand, else left as they are."""
        sections = []
        _, tested = chosen_result(self.runs, self.edition, ENSEMBLE, DENSE)
        for name, right in (("fig4", True), ("fig5", False)):
            number, how = name[-1], "right" if right else "wrong, the class is not among the five"
            title = self.title(f"Fig. {number}: validation images and five guesses, {how}")
            stem = name + self.edition.suffix
            saved = runs_folder / f"{ENSEMBLE}-{self.edition.data}" / "predictions-dense.npz"
            if tested and saved.is_file():
                self._draw_pictures(saved, tested[0][1]["per_class"], title, stem, right)
            files = [stem] if (self.results / f"{stem}.png").is_file() else []
            sections.append(Section(None, title, files, "not run"))
        return sections if self.edition.is_paper or tested else []

    def _draw_pictures(
        self, path: Path, per_class: Sequence[dict[str, object]], title: str, stem: str, right: bool
    ) -> None:
        saved = read_saved(path)
        config = next(path.parent.parent.glob(f"*-{self.edition.data}-seed*/config.yaml"))
        names = {row["class"]: class_name(row) for row in per_class}
        words = [names.get(name, name) for name in saved.classes]
        pictures = examples(saved, read_yaml(config)["data"]["root"], words, right=right)
        if pictures:
            for kind in ("png", "svg"):
                draw_pictures(pictures, self.results / f"{stem}.{kind}", title)
