"""The results folder: every table and figure beside the paper's, one page in Markdown and HTML."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from analysis.report.examples import examples
from analysis.report.figures import (
    class_name,
    curves_of,
    draw_class_differences,
    draw_class_errors,
    draw_curves,
    draw_filters,
    draw_slopes,
    draw_slopes_over_time,
)
from analysis.report.page import Section, write_page
from analysis.report.paper import (
    CURVE_FIGURES,
    DENSE,
    ENSEMBLE,
    ENSEMBLE_MEMBERS,
    ERROR_TABLES,
    FIG7_BASELINE,
    SLOPE_EXPERIMENTS,
    CurveFigure,
    ErrorTable,
)
from analysis.report.runs import Edition, Run, editions
from analysis.report.selection import NOT_RUN, choose, tested_runs
from analysis.report.tables import architecture_table, curve_table, error_table, slope_table
from common.errors import refusing
from common.style import save_figure, styled
from configs.store import read_yaml
from evaluation.picture_figure import draw_pictures
from evaluation.predictions import load_predictions
from evaluation.result import Result

_ENSEMBLE_NAME, _BASELINE_NAME = "six models (Table 7)", "A, ReLU, multi-scale"


def write_report(runs: Sequence[Run], results: Path, runs_folder: Path) -> Path:
    """Write all tables, figures and the pages from the records of runs; returns README.md's path.

    Only the photographs of Figs. 4 and 5 need more than records: saved predictions in
    `runs_folder`, and the images. Raises UserError if something cannot be written.
    """
    sections: list[Section] = []
    with styled(), refusing(OSError, what=f"cannot write into {results}"):
        results.mkdir(parents=True, exist_ok=True)
        for edition in editions(runs):
            own = [run for run in runs if edition.includes(run)]
            sections += _Writer(results, runs_folder, edition, own).sections()
        for table in filter(None, (section.table for section in sections)):
            note = f"{table.note}\n\n" if table.note else ""
            text = f"# {table.title}\n\n{note}{table.markdown()}"
            (results / f"{table.name}.md").write_text(text)
            (results / f"{table.name}.csv").write_text(table.csv())
        return write_page(sections, runs, results)


class _Writer:
    """Writes one edition's figures, and says what its page shows."""

    def __init__(
        self, results: Path, runs_folder: Path, edition: Edition, runs: Sequence[Run]
    ) -> None:
        self.results, self.runs_folder = results, runs_folder
        self.edition, self.runs = edition, runs

    def sections(self) -> list[Section]:
        """In the paper's order; of another edition only those with runs."""
        sections = []
        if self.edition.is_paper:
            table = architecture_table()
            sections.append(Section(table.title, table))
        if self.edition.is_paper or self.has_runs(SLOPE_EXPERIMENTS):
            sections.append(self.slopes())
        sections += [self.errors(table) for table in ERROR_TABLES if self.has_results(table)]
        sections += [
            self.curves(figure)
            for figure in CURVE_FIGURES
            if self.edition.is_paper or self.has_runs(figure.experiments)
        ]
        sections += [*self.pictures(), *self.classes()]
        return sorted(sections, key=lambda section: section.order)

    def title(self, text: str) -> str:
        """The paper's title, or one that says what the edition is not."""
        if self.edition.is_paper:
            return text
        sources = " and ".join(sorted({run.source for run in self.runs if run.source}))
        how = "SCALED DOWN" if self.edition.scaled else "NOT ImageNet"
        text = text.replace(" at scale 256", "").partition(", dense")[0]
        return f'{text} – {how}, on images of "{sources}"'

    def has_runs(self, experiments: Sequence[str]) -> bool:
        """Whether any of them has been run."""
        wanted = {self.edition.experiment(name) for name in experiments}
        return any(run.experiment in wanted for run in self.runs)

    def has_results(self, table: ErrorTable) -> bool:
        """Whether a row of the table can be filled; the paper's edition shows all tables."""
        return self.edition.is_paper or any(
            tested_runs(self.runs, self.edition, row.experiment, row.test).results
            for row in table.rows
            if row.experiment
        )

    def figure(self, name: str, figure: Figure | None) -> list[str]:
        """Write a figure, or remove a stale one for which there are no runs any more."""
        name += self.edition.suffix
        if figure is not None:
            save_figure(figure, self.results, name)
            return [name]
        for kind in ("png", "svg"):
            (self.results / f"{name}.{kind}").unlink(missing_ok=True)
        return []

    def errors(self, table: ErrorTable) -> Section:
        title = self.title(table.title)
        return Section(title, error_table(table, self.edition, self.runs, title))

    def slopes(self) -> Section:
        title = self.title("Table 1: learned slopes of the 14-layer model")
        table = slope_table(self.edition, self.runs, title)
        shared, wise = (choose(self.runs, self.edition, name) for name in SLOPE_EXPERIMENTS)
        partial = [chosen.partial for chosen in (shared, wise) if chosen.partial]
        if partial:
            title += f" ({'; '.join(partial)})"
        has_slopes = any(run.slopes for run in [*shared.runs, *wise.runs])
        figure = draw_slopes(shared.runs, wise.runs, title) if has_slopes else None
        files = self.figure("table1", figure)
        return Section(table.title, table, [*files, *self.learned([*wise.runs, *shared.runs])])

    def learned(self, runs: Sequence[Run]) -> list[str]:
        """The first run's slopes over time, and conv1's filters, to which Sec. 4.1 looks."""
        slopes = filters = None
        if tracked := next((run for run in runs if run.slopes_over_time), None):
            of = f"{tracked.name}, {tracked.length}"
            title = self.title(f"Learned slopes over time, by layer: {of}")
            slopes = draw_slopes_over_time(tracked, title, self.edition)
        if pictured := next((run for run in runs if run.filters), None):
            title = self.title("Filters of conv1")
            filters = draw_filters(pictured, f"{title}\n{pictured.name}, {pictured.length}")
        return [
            *self.figure("table1-over-time", slopes),
            *self.figure("table1-filters", filters),
        ]

    def curves(self, item: CurveFigure) -> Section:
        title = self.title(item.title)
        curves = curves_of(item, self.edition, self.runs)
        figure = draw_curves(curves, title, self.edition) if curves else None
        table = curve_table(item, self.edition, self.runs, title)
        return Section(title, table, self.figure(item.name, figure))

    def classes(self) -> list[Section]:
        """Fig. 6, the ensemble's errors by class, and Fig. 7, them less those of A with ReLU."""
        ours = tested_runs(self.runs, self.edition, ENSEMBLE, DENSE)
        base = tested_runs(self.runs, self.edition, FIG7_BASELINE, DENSE)
        if not self.edition.is_paper and not ours.results:
            return []
        title6 = self.title("Fig. 6: top-5 error of each class, six models together")
        title7 = self.title("Fig. 7: six models together, less model A with ReLU, class by class")
        errors = differences = None
        if ours.results:
            by_class = ours.results[0][1]["per_class"]
            errors = draw_class_errors(by_class, title6, self.edition)
            if base.results:
                old = base.results[0][1]["per_class"]
                names = (_ENSEMBLE_NAME, _BASELINE_NAME)
                differences = draw_class_differences(
                    by_class, old, title7, names=names, edition=self.edition
                )
        return [
            Section(title6, figures=self.figure("fig6", errors), state=ours.chosen.state),
            Section(
                title7,
                figures=self.figure("fig7", differences),
                state=base.chosen.state if ours.runs else ours.chosen.state,
                note="The paper compares with its team's entry of 2014, which we do not have.",
            ),
        ]

    def pictures(self) -> list[Section]:
        """Figs. 4 and 5; drawn where predictions and images are at hand, else left as they are."""
        ensemble = tested_runs(self.runs, self.edition, ENSEMBLE, DENSE)
        if not self.edition.is_paper and not ensemble.results:
            return []
        sections = []
        for number, right in ((4, True), (5, False)):
            outcome = "right" if right else "wrong, the class is not among the five"
            title = self.title(f"Fig. {number}: validation images and five predictions, {outcome}")
            files = [self.results / f"fig{number}{self.edition.suffix}.{k}" for k in ("png", "svg")]
            state = NOT_RUN
            if ensemble.results:
                run, result = ensemble.results[0]
                state = self._draw_pictures(run.name, result, title, files=files, right=right)
            figures = [files[0].stem] if files[0].is_file() else []
            sections.append(Section(title, figures=figures, state=state))
        return sections

    def _draw_pictures(
        self,
        ensemble: str,
        result: Result,
        title: str,
        *,
        files: Sequence[Path],
        right: bool,
    ) -> str:
        """Draws a figure anew if it can; returns what stands for one that is not there."""
        saved = self.runs_folder / ensemble / "predictions-dense.npz"
        experiment, seed = ENSEMBLE_MEMBERS[0]
        member = f"{self.edition.experiment(experiment)}-{self.edition.data}-seed{seed}"
        config = self.runs_folder / member / "config.yaml"
        if not (saved.is_file() and config.is_file()):
            return f"needs {ensemble}/{saved.name} and {member}, which are not here"
        predictions = load_predictions(saved)
        names = {row["class"]: class_name(row) for row in result["per_class"]}
        pictures = examples(
            predictions,
            read_yaml(config)["data"]["root"],
            [names.get(name, name) for name in predictions.classes],
            count=self.edition.test(DENSE).subset,
            right=right,
        )
        for path in files:
            if pictures:
                draw_pictures(pictures, path, title)
            else:
                path.unlink(missing_ok=True)
        return "there is no such image"
