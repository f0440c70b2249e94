"""Which runs of an edition count in a table or a figure, and their results."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.report.paper import ENSEMBLE, ENSEMBLE_MEMBERS, CurveFigure, Test
from analysis.report.runs import Edition, Run
from evaluation.metrics import Errors
from evaluation.result import Result

NOT_RUN = "not run"


@dataclass(frozen=True)
class Chosen:
    """The runs of an experiment that count: all finished and equally long, else partial ones."""

    runs: Sequence[Run] = ()
    progress: str = ""  # how far partial runs are; "" if all are finished

    @property
    def partial(self) -> str:
        """`partial: 3 of 75 epochs`; "" for finished runs, and if there are none."""
        return f"partial: {self.progress}" if self.progress else ""

    @property
    def remark(self) -> str:
        """Follows the number of partial runs in a cell, or their label in a figure."""
        return f" ({self.partial})" if self.partial else ""

    @property
    def state(self) -> str:
        """`finished`, `partial: ...` or `not run`, for a cell of a table."""
        return (self.partial or "finished") if self.runs else NOT_RUN


@dataclass(frozen=True)
class Tested(Chosen):
    """Chosen runs with the results of a test; if none has been tested, all of them without."""

    results: Sequence[Result] = ()  # one for each run, or none at all

    @property
    def state(self) -> str:
        if self.results or not self.runs:
            return super().state
        return ", ".join(filter(None, [self.partial, "not tested"]))

    @property
    def commits(self) -> list[str]:
        """The commits that tested; the commit of the run where a result names none."""
        pairs = zip(self.runs, self.results, strict=True) if self.results else ()
        commits = {result.get("commit") or run.commit for run, result in pairs}
        return sorted(commit for commit in commits if commit)

    def errors(self, scale: int | None) -> list[Errors]:
        """The errors of each result at a scale; None: all scales combined."""
        if scale is None:
            return [result["combined"] for result in self.results]
        return [
            entry
            for result in self.results
            for entry in result["scales"]
            if entry["scale"] == scale
        ]


@dataclass(frozen=True)
class Curve:
    """The runs of one experiment, a seed each, drawn as one line."""

    label: str
    chosen: Chosen

    @property
    def runs(self) -> list[Run]:
        """Those that can be drawn."""
        return [run for run in self.chosen.runs if run.val and run.train]


@dataclass(frozen=True)
class EditionRuns:
    """The runs of one edition, and the choice among them."""

    edition: Edition
    runs: Sequence[Run]

    def title(self, text: str) -> str:
        """The paper's title of a table or figure, or one that says what the edition is not."""
        if self.edition.is_paper:
            return text
        sources = " and ".join(sorted({run.source for run in self.runs if run.source}))
        difference = "SCALED DOWN" if self.edition.scaled else "NOT ImageNet"
        text = text.replace(" at scale 256", "").partition(", dense")[0]  # other scales
        return f'{text} – {difference}, on images of "{sources}"'

    def has_any(self, experiments: Sequence[str]) -> bool:
        """Whether any of these experiments has been run."""
        return any(run.base_experiment in experiments for run in self.runs)

    def choose(self, experiment: str) -> Chosen:
        """The runs of an experiment that count."""
        runs = [run for run in self.runs if run.base_experiment == experiment]
        runs = [run for run in runs if run.finished] or [run for run in runs if run.steps]
        if not runs:
            return Chosen()
        longest = max(run.steps for run in runs)
        runs = sorted((run for run in runs if run.steps == longest), key=lambda run: run.seed)
        return Chosen(runs, "" if runs[0].finished else runs[0].length)

    def _choose_ensemble(self) -> Chosen:
        """The six models of Table 7 tested together; no other combination counts."""
        files = {
            f"{self.edition.experiment(experiment)}-{self.edition.data}-seed{seed}"
            "/predictions-dense.npz"
            for experiment, seed in ENSEMBLE_MEMBERS
        }
        members = [run for run in self.runs if (run.base_experiment, run.seed) in ENSEMBLE_MEMBERS]
        hours = sum(run.hours for run in members)
        ensembles = [
            replace(run, hours=hours)
            for run in self.runs
            if run.is_ensemble
            and any(set(result["checkpoints"]) == files for result in run.results.values())
        ]
        unfinished = [run for run in members if not run.finished]
        if not ensembles or not unfinished:
            return Chosen(ensembles)
        return Chosen(ensembles, f"{unfinished[0].name} has {unfinished[0].length}")

    def tested(self, experiment: str, test: Test) -> Tested:
        """The runs of an experiment that count, with the results of those that have this test."""
        chosen = self._choose_ensemble() if experiment == ENSEMBLE else self.choose(experiment)
        test = self.edition.test(test)
        results = {run.name: find_result(run, test) for run in chosen.runs}
        tested = [run for run in chosen.runs if results[run.name]]
        return Tested(tested or chosen.runs, chosen.progress, list(filter(None, results.values())))

    def curves(self, figure: CurveFigure) -> list[Curve]:
        """All curves of a figure, even those without runs."""
        return [Curve(label, self.choose(experiment)) for label, experiment in figure.curves]


def find_result(run: Run, test: Test) -> Result | None:
    """The result of exactly this test of the run's last checkpoint; None if there is none.

    Results of best.pt do not count: it is chosen by its error on the images that test it. The file
    that reproduce.py writes comes before others, which may be of another data set.
    """
    usual_name = f"result-{test.name}.json"
    settings = {
        "average": "probabilities",
        "square": False,
        "on_map": False,
        "weights": None,
        "split": "val",
        "subset": test.subset,
    }
    for _, result in sorted(run.results.items(), key=lambda item: item[0] != usual_name):
        # Combined from saved predictions, a result has no single scales.
        scales = [row["scale"] for row in result["scales"]]
        is_of_run = run.is_ensemble or (
            scales == list(test.scales) and result["checkpoints"] == [f"{run.name}/last.pt"]
        )
        is_of_test = result["views"] == test.views and settings.items() <= result["config"].items()
        if is_of_run and is_of_test:
            return result
    return None
