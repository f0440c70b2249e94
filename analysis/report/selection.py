"""Which runs stand in a row of a table, and the numbers that they give."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from analysis.report.paper import ENSEMBLE, ENSEMBLE_MEMBERS, Test
from analysis.report.runs import Edition, Run
from evaluation.result import Result

NOT_RUN = "not run"


@dataclass(frozen=True)
class Chosen:
    """The runs of an experiment that count: all finished and equally long, else partial ones."""

    runs: Sequence[Run] = ()
    progress: str = ""  # how far partial runs are; "" where all are finished

    @property
    def partial(self) -> str:
        """`partial: 3 of 75 epochs`; "" for finished runs, and where there are none."""
        return f"partial: {self.progress}" if self.progress else ""

    @property
    def state(self) -> str:
        """For a cell of a table."""
        return (self.partial or "finished") if self.runs else NOT_RUN


def mean(values: Sequence[float]) -> float | None:
    """Mean over the seeds; None: there is no value."""
    return fmean(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over the seeds; None: there is at most one."""
    return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Tested:
    """The chosen runs of an experiment, and their results of one test."""

    chosen: Chosen = Chosen()
    results: Sequence[tuple[Run, Result]] = ()  # of the runs that have the test

    @property
    def runs(self) -> Sequence[Run]:
        """Those with the test, else those that lack it."""
        return [run for run, _ in self.results] or self.chosen.runs

    @property
    def state(self) -> str:
        """For a cell of a table."""
        if self.results or not self.chosen.runs:
            return self.chosen.state
        return ", ".join(filter(None, [self.chosen.partial, "not tested"]))

    @property
    def commits(self) -> list[str]:
        """Of the tests, else of the runs."""
        found = {result.get("commit") or run.commit for run, result in self.results}
        return sorted(commit for commit in found if commit)


def choose(runs: Sequence[Run], edition: Edition, experiment: str) -> Chosen:
    """The runs of an experiment that a table or a figure counts."""
    name = edition.experiment(experiment)
    own = [run for run in runs if run.experiment == name and edition.includes(run)]
    best = [run for run in own if run.finished] or [run for run in own if run.steps]
    if not best:
        return Chosen()
    longest = max(run.steps for run in best)
    best = sorted((run for run in best if run.steps == longest), key=lambda run: run.seed)
    return Chosen(best, "" if best[0].finished else best[0].length)


def _choose_ensemble(runs: Sequence[Run], edition: Edition) -> Chosen:
    """The result of the six models of Table 7 together; other combinations do not count."""
    members = {(edition.experiment(experiment), seed) for experiment, seed in ENSEMBLE_MEMBERS}
    files = {f"{e}-{edition.data}-seed{s}/predictions-dense.npz" for e, s in members}
    own = [
        run
        for run in runs
        if run.is_ensemble
        and edition.includes(run)
        and any(set(result["checkpoints"]) == files for result in run.results.values())
    ]
    trained = [
        run for run in runs if (run.experiment, run.seed) in members and edition.includes(run)
    ]
    own = [replace(run, hours=sum(member.hours for member in trained)) for run in own]
    unfinished = [run for run in trained if not run.finished]
    if not own or not unfinished:
        return Chosen(own)
    return Chosen(own, f"{unfinished[0].name} has {unfinished[0].length}")


def find_result(run: Run, test: Test) -> Result | None:
    """The result of exactly this test of the run's last checkpoint, if there is one.

    best.pt is chosen by its error on the images that test it, so its results do not count. The file
    that reproduce.py writes goes before others, which may be of another data set.
    """
    own = f"result-{test.name}.json"
    for _, result in sorted(run.results.items(), key=lambda item: item[0] != own):
        config = result["config"]
        scales = [row["scale"] for row in result["scales"]]
        is_plain = (
            config.get("average") == "probabilities"
            and not config.get("square")
            and not config.get("on_map")
            and config.get("weights") is None
            and config.get("split", "val") == "val"
        )
        # Combined from saved predictions, a result has no single scales.
        is_of_run = run.is_ensemble or (
            scales == list(test.scales) and result["checkpoints"] == [f"{run.name}/last.pt"]
        )
        is_of_test = result["views"] == test.views and config["subset"] == test.subset
        if is_plain and is_of_run and is_of_test:
            return result
    return None


def tested_runs(runs: Sequence[Run], edition: Edition, experiment: str, test: Test) -> Tested:
    """The runs that count, with the results of those that have this test."""
    is_ensemble = experiment == ENSEMBLE
    chosen = _choose_ensemble(runs, edition) if is_ensemble else choose(runs, edition, experiment)
    pairs = [(run, find_result(run, edition.test(test))) for run in chosen.runs]
    return Tested(chosen, [(run, result) for run, result in pairs if result is not None])
