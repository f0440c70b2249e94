"""The results folder: every table and figure beside the paper's, one page in Markdown and HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from analysis.report.examples import examples
from analysis.report.figures import (
    class_name,
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
)
from analysis.report.runs import Run, editions
from analysis.report.selection import NOT_RUN, EditionRuns, Tested
from analysis.report.tables import architecture_table, curve_table, error_table, slope_table
from common.errors import refusing
from common.style import save_figure, styled
from configs.store import read_yaml
from evaluation.picture_figure import draw_pictures
from evaluation.predictions import load_predictions


def write_report(runs: Sequence[Run], results: Path, runs_folder: Path) -> Path:
    """Write all tables, figures and the pages from the records of runs; returns README.md's path.

    Only the photographs of Figs. 4 and 5 need more than records: saved predictions in
    `runs_folder`, and the images. Raises UserError if something cannot be written.
    """
    sections: list[Section] = []
    with styled(), refusing(OSError, what=f"cannot write into {results}"):
        results.mkdir(parents=True, exist_ok=True)
        for edition in editions(runs):
            included = EditionRuns(edition, [run for run in runs if edition.includes(run)])
            sections += _Writer(included, results, runs_folder).sections()
        for table in filter(None, (section.table for section in sections)):
            note = f"{table.note}\n\n" if table.note else ""
            text = f"# {table.title}\n\n{note}{table.markdown()}"
            (results / f"{table.name}.md").write_text(text)
            (results / f"{table.name}.csv").write_text(table.csv())
        return write_page(sections, runs, results)


@dataclass(frozen=True)
class _Writer:
    """Writes the figures of one edition, and returns the sections of its page."""

    runs: EditionRuns
    results: Path
    runs_folder: Path

    def sections(self) -> list[Section]:
        """All sections in the paper's order; for another edition only those with runs."""
        sections = []
        is_paper = self.runs.edition.is_paper
        if is_paper:
            sections.append(Section.of(architecture_table()))
        if is_paper or self.runs.has_any(SLOPE_EXPERIMENTS):
            sections.append(self.slopes())
        for item in ERROR_TABLES:
            table = error_table(item, self.runs)
            if is_paper or any(row["ours"] is not None for row in table.numbers):
                sections.append(Section.of(table))
        sections += [
            self.curves(figure)
            for figure in CURVE_FIGURES
            if is_paper or self.runs.has_any(figure.experiments)
        ]
        ensemble = self.runs.tested(ENSEMBLE, DENSE)
        if is_paper or ensemble.results:
            sections += [*self.pictures(ensemble), *self.classes(ensemble)]
        return sorted(sections, key=lambda section: section.order)

    def figure(self, name: str, figure: Figure | None) -> list[str]:
        """Write the figure; returns its file name. None: remove the files of an earlier report."""
        name += self.runs.edition.suffix
        if figure is not None:
            save_figure(figure, self.results, name)
            return [name]
        for path in self._files(name):
            path.unlink(missing_ok=True)
        return []

    def _files(self, name: str) -> list[Path]:
        return [self.results / f"{name}.{kind}" for kind in ("png", "svg")]

    def slopes(self) -> Section:
        """Table 1, its slopes over time, and conv1's filters, which explain them (Sec. 4.1)."""
        table = slope_table(self.runs)
        shared, channel_wise = (self.runs.choose(name) for name in SLOPE_EXPERIMENTS)
        runs = [*channel_wise.runs, *shared.runs]
        slopes = over_time = filters = None
        if any(run.slopes for run in runs):
            partial = "; ".join(filter(None, [shared.partial, channel_wise.partial]))
            title = f"{table.title} ({partial})" if partial else table.title
            # A run that was killed before its first checkpoint has no slopes.
            slopes = draw_slopes(
                [run for run in shared.runs if run.slopes],
                [run for run in channel_wise.runs if run.slopes],
                title,
            )
        if tracked := next((run for run in runs if run.slopes_over_time), None):
            title = f"Learned slopes over time, by layer: {tracked.name}, {tracked.length}"
            over_time = draw_slopes_over_time(tracked, self.runs.title(title), self.runs.edition)
        if pictured := next((run for run in runs if run.filters), None):
            title = self.runs.title("Filters of conv1")
            filters = draw_filters(pictured, f"{title}\n{pictured.name}, {pictured.length}")
        figures = [
            *self.figure("table1", slopes),
            *self.figure("table1-over-time", over_time),
            *self.figure("table1-filters", filters),
        ]
        return Section.of(table, figures)

    def curves(self, item: CurveFigure) -> Section:
        table = curve_table(item, self.runs)
        curves = [curve for curve in self.runs.curves(item) if curve.runs]
        figure = draw_curves(curves, table.title, self.runs.edition) if curves else None
        return Section.of(table, self.figure(item.name, figure))

    def classes(self, ensemble: Tested) -> list[Section]:
        """Fig. 6, the errors of the ensemble by class, and Fig. 7, less those of A with ReLU."""
        edition = self.runs.edition
        baseline = self.runs.tested(FIG7_BASELINE, DENSE)
        title6 = "Fig. 6: top-5 error of each class, six models together"
        title7 = "Fig. 7: six models together, less model A with ReLU, class by class"
        title6, title7 = self.runs.title(title6), self.runs.title(title7)
        errors = differences = None
        if ensemble.results:
            new = ensemble.results[0]["per_class"]
            errors = draw_class_errors(new, title6, edition)
            if baseline.results:
                old = baseline.results[0]["per_class"]
                differences = draw_class_differences(new, old, title7, edition)
        return [
            Section(title6, figures=self.figure("fig6", errors), state=ensemble.state),
            Section(
                title7,
                figures=self.figure("fig7", differences),
                state=baseline.state if ensemble.runs else ensemble.state,
                note="The paper compares with its team's entry of 2014, which we do not have.",
            ),
        ]

    def pictures(self, ensemble: Tested) -> list[Section]:
        """Figs. 4 and 5, drawn if predictions and images are there, else left as they are."""
        sections = []
        for number, right in ((4, True), (5, False)):
            outcome = "right" if right else "wrong, the class is not among the five"
            title = f"Fig. {number}: validation images and five predictions, {outcome}"
            title = self.runs.title(title)
            name = f"fig{number}{self.runs.edition.suffix}"
            state = NOT_RUN
            if ensemble.results:
                state = self._draw_pictures(ensemble, name, title, right=right)
            figures = [name] if self._files(name)[0].is_file() else []
            sections.append(Section(title, figures=figures, state=state))
        return sections

    def _draw_pictures(self, ensemble: Tested, name: str, title: str, *, right: bool) -> str:
        """Draw the figure if possible; returns what the page says if there is none."""
        edition, folder = self.runs.edition, ensemble.runs[0].name
        saved = self.runs_folder / folder / "predictions-dense.npz"
        experiment, seed = ENSEMBLE_MEMBERS[0]
        member = f"{edition.experiment(experiment)}-{edition.data}-seed{seed}"
        config = self.runs_folder / member / "config.yaml"
        if not (saved.is_file() and config.is_file()):
            return f"needs {folder}/{saved.name} and {member}, which are not here"
        predictions = load_predictions(saved)
        words = {row["class"]: class_name(row) for row in ensemble.results[0]["per_class"]}
        pictures = examples(
            predictions,
            read_yaml(config)["data"]["root"],
            [words.get(name, name) for name in predictions.classes],
            count=edition.test(DENSE).subset,
            right=right,
        )
        for path in self._files(name):
            if pictures:
                draw_pictures(pictures, path, title)
            else:
                path.unlink(missing_ok=True)
        return "there is no such image"
