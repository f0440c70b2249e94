"""The results folder: every table and figure beside the paper's, one page in Markdown and HTML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.report.examples import examples
from analysis.report.figures import (
    class_name,
    curves_of,
    draw_class_differences,
    draw_class_errors,
    draw_curves,
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
from analysis.report.runs import Edition, Run, editions
from analysis.report.selection import choose, tested_runs
from analysis.report.tables import architecture_table, curve_table, error_table, slope_table
from common.errors import refusing
from common.style import save_figure, styled
from configs.store import read_yaml
from evaluation.pictures import draw_pictures
from evaluation.predictions import load_predictions

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
            sections += [self.slopes(), Section(table.title, table)]
        sections += [self.errors(table) for table in ERROR_TABLES if self.shows(table)]
        sections += [self.curves(figure) for figure in CURVE_FIGURES if self.shows(figure)]
        if not self.edition.scaled:
            sections += [*self.pictures(), *self.classes()]
        return sorted(sections, key=lambda section: section.order)

    def title(self, text: str) -> str:
        """The paper's title, or one that says what the edition is not."""
        if self.edition.is_paper:
            return text
        sources = " and ".join(sorted({run.source for run in self.runs if run.source}))
        how = "SCALED DOWN" if self.edition.scaled else "NOT ImageNet"
        where = "ImageNet" if self.edition.data == "imagenet" else f'images of "{sources}"'
        return f"{text.replace(' at scale 256', '').partition(', dense')[0]} – {how}, on {where}"

    def shows(self, item: ErrorTable | CurveFigure) -> bool:
        """Whether this edition has the table or figure."""
        if self.edition.is_paper:
            return True
        wanted = {self.edition.experiment(name) for name in item.experiments}
        is_known = item.name in SCALED_TARGETS or not self.edition.scaled
        return is_known and any(run.experiment in wanted for run in self.runs)

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
        table = slope_table(self.runs)
        shared, wise = (choose(self.runs, self.edition, name) for name in SLOPE_EXPERIMENTS)
        partial = [chosen.partial for chosen in (shared, wise) if chosen.partial]
        title = f"{table.title} ({'; '.join(partial)})" if partial else table.title
        has_slopes = any(run.slopes for run in [*shared.runs, *wise.runs])
        figure = draw_slopes(shared.runs, wise.runs, title) if has_slopes else None
        return Section(table.title, table, self.figure("table1", figure))

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
        folder = self.runs_folder / f"{ENSEMBLE}-{self.edition.data}"
        saved = folder / "predictions-dense.npz"
        sections = []
        for number, outcome in ((4, "right"), (5, "wrong, the class is not among the five")):
            title = self.title(f"Fig. {number}: validation images and five predictions, {outcome}")
            stem = f"fig{number}{self.edition.suffix}"
            if ensemble.results and saved.is_file():
                per_class = ensemble.results[0][1]["per_class"]
                self._draw_pictures(saved, per_class, title, stem=stem, right=number == 4)
            files = [stem] if (self.results / f"{stem}.png").is_file() else []
            sections.append(Section(title, figures=files, state="not run"))
        return sections

    def _draw_pictures(
        self, path: Path, per_class: list[dict[str, Any]], title: str, *, stem: str, right: bool
    ) -> None:
        predictions = load_predictions(path)
        config = next(self.runs_folder.glob(f"*-{self.edition.data}-seed*/config.yaml"))
        names = {row["class"]: class_name(row) for row in per_class}
        words = [names.get(name, name) for name in predictions.classes]
        root = read_yaml(config)["data"]["root"]
        pictures = examples(predictions, root, words, right=right)
        if pictures:
            for kind in ("png", "svg"):
                draw_pictures(pictures, self.results / f"{stem}.{kind}", title)
