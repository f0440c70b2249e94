"""Which runs stand in a row of a table, and the numbers that they give."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from analysis.report.paper import ENSEMBLE, ENSEMBLE_MEMBERS, SCALED_TESTS, ErrorTable, Row, Test
from analysis.report.runs import SCALED, Run

METRICS = ("top1", "top5")
NOT_RUN = "not run"
NOT_TESTED = "not tested"
FINISHED = "finished"


@dataclass(frozen=True)
class Edition:
    """A way to run all experiments: as the paper did, scaled down, or on another data set."""

    scaled: bool = False
    data: str = "imagenet"

    @property
    def is_paper(self) -> bool:
        """Whether its numbers may be compared with the paper's."""
        return not self.scaled and self.data == "imagenet"

    @property
    def note(self) -> str:
        """What a reader must not miss."""
        if self.is_paper:
            return ""
        if self.scaled:
            return (
                "**Scaled down:** small crops, narrow layers, short runs, few test images, as "
                "configs/experiment/scaled*.yaml say. The paper's numbers, where shown, are for "
                "orientation; these say nothing about ImageNet."
            )
        return "**Not ImageNet:** the paper's numbers, where shown, are for orientation only."

    @property
    def suffix(self) -> str:
        """Ends the name of each of its files."""
        return "" if self.is_paper else f"{'-scaled' if self.scaled else ''}-{self.data}"

    def experiment(self, name: str) -> str:
        """The experiment of this edition that a table calls `name`."""
        return SCALED + name if self.scaled else name

    def test(self, test: Test) -> Test:
        return SCALED_TESTS[test] if self.scaled else test

    def counts(self, run: Run) -> bool:
        """Whether a run is of this edition, and is what its experiment's file says."""
        known = run.experiment is not None and not run.changed
        return known and run.scaled == self.scaled and run.data == self.data


@dataclass(frozen=True)
class Chosen:
    """The runs of an experiment that count: all finished and equally long, else partial ones."""

    runs: Sequence[Run]
    state: str  # finished | partial: how far | not run


@dataclass(frozen=True)
class Cell:
    """Top-1 or top-5 error of a row, percent."""

    state: str  # as Chosen's, or: not tested
    values: Sequence[float] = ()  # a number for each seed
    interval: tuple[float, float] | None = None  # 95 %, binomial, mean over the seeds
    images: int = 0
    runs: Sequence[Run] = ()
    commits: Sequence[str] = ()  # of the tests, else of the runs

    @property
    def ours(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds."""
        return stdev(self.values) if len(self.values) > 1 else None


def editions(runs: Iterable[Run]) -> list[Edition]:
    """The paper's, and every other that there are runs of."""
    found = {Edition(run.scaled, run.data) for run in runs if run.experiment and not run.changed}
    others = sorted(found - {Edition()}, key=lambda edition: edition.suffix)
    return [Edition(), *others]


def choose(runs: Iterable[Run], edition: Edition, experiment: str) -> Chosen:
    """The runs of an experiment that a table or a figure counts."""
    name = edition.experiment(experiment)
    own = [run for run in runs if run.experiment == name and edition.counts(run)]
    best = [run for run in own if run.finished] or [run for run in own if run.steps]
    if not best:
        return Chosen((), NOT_RUN)
    longest = max(run.steps for run in best)
    best = sorted((run for run in best if run.steps == longest), key=lambda run: run.seed)
    state = FINISHED if best[0].finished else f"partial: {best[0].length}"
    return Chosen(best, state)


def _choose_ensemble(runs: Sequence[Run], edition: Edition) -> Chosen:
    """The result of the six models of Table 7 together, whatever else was combined."""
    files = {f"{e}-{edition.data}-seed{s}/predictions-dense.npz" for e, s in ENSEMBLE_MEMBERS}
    own = [
        run
        for run in runs
        if run.experiment == ENSEMBLE
        and edition.counts(run)
        and any(set(result["checkpoints"]) == files for result in run.results.values())
    ]
    members = {(edition.experiment(experiment), seed) for experiment, seed in ENSEMBLE_MEMBERS}
    unfinished = [
        run
        for run in runs
        if (run.experiment, run.seed) in members and edition.counts(run) and not run.finished
    ]
    if not own:
        return Chosen((), NOT_RUN)
    if unfinished:
        return Chosen(own, f"partial: {unfinished[0].name} has {unfinished[0].length}")
    return Chosen(own, FINISHED)


def find_result(run: Run, test: Test) -> dict[str, Any] | None:
    """The result of exactly this test of the run's last checkpoint, if there is one.

    best.pt is chosen by its error on the images that test it, so its results do not count.
    """
    for result in run.results.values():
        config = result["config"]
        scales = [row["scale"] for row in result["scales"]]
        usual = (
            config.get("average") == "probabilities"
            and not config.get("square")
            and not config.get("on_map")
            and config.get("weights") is None
            and config.get("split", "val") == "val"
        )
        # Combined from saved predictions, a result has no single scales.
        same = run.experiment == ENSEMBLE or (
            scales == list(test.scales) and result["checkpoints"] == [f"{run.name}/last.pt"]
        )
        if usual and same and result["views"] == test.views and config["subset"] == test.subset:
            return result
    return None


def chosen_result(
    runs: Sequence[Run], edition: Edition, experiment: str, test: Test
) -> tuple[Chosen, list[tuple[Run, dict[str, Any]]]]:
    """The runs that count, and those of them that were tested so, with the results."""
    ensemble = experiment == ENSEMBLE
    chosen = _choose_ensemble(runs, edition) if ensemble else choose(runs, edition, experiment)
    pairs = [(run, find_result(run, edition.test(test))) for run in chosen.runs]
    return chosen, [(run, result) for run, result in pairs if result is not None]


def cell(runs: Sequence[Run], edition: Edition, row: Row, metric: str) -> Cell:
    """Our number for a row; metric: top1 | top5."""
    if row.experiment is None:
        return Cell("")
    chosen, tested = chosen_result(runs, edition, row.experiment, row.test)
    if not tested:
        partial = chosen.state if chosen.state not in (FINISHED, NOT_RUN) else ""
        state = chosen.state if not chosen.runs else NOT_TESTED
        return Cell(f"{partial}, {state}" if partial else state, runs=chosen.runs)
    entries = [_entry(result, edition.test(row.test), row) for _, result in tested]
    low, high = zip(*(entry[f"{metric}_interval"] for entry in entries), strict=True)
    return Cell(
        chosen.state,
        [entry[f"{metric}_error"] for entry in entries],
        (fmean(low), fmean(high)),
        tested[0][1]["images"],
        [run for run, _ in tested],
        sorted({c for r, result in tested if (c := result.get("commit") or r.commit)}),
    )


def _entry(result: dict[str, Any], test: Test, row: Row) -> dict[str, Any]:
    """The errors at the row's scale, or of all scales combined."""
    if row.scale is None:
        return dict(result["combined"])
    place = row.test.scales.index(row.scale)
    return next(e for e in result["scales"] if e["scale"] == test.scales[place])


def row_label(edition: Edition, table: ErrorTable, row: Row) -> tuple[str, ...]:
    """The label's cells; a scaled edition has scales of its own."""
    if row.scale is None or not edition.scaled:
        return row.label
    scale = edition.test(row.test).scales[row.test.scales.index(row.scale)]
    return tuple(str(scale) if text == str(row.scale) else text for text in row.label)
