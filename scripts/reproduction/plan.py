"""Which runs and evaluations a table or figure needs, and the command line of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from analysis.report.paper import (
    DENSE,
    ENSEMBLE,
    ENSEMBLE_MEMBERS,
    FIG2,
    FIG3,
    FIG7_BASELINE,
    SCALED_SEEDS,
    SCALED_TESTS,
    SEC22,
    SEC22_DEPTH,
    SLOPE_EXPERIMENTS,
    TABLE2,
    TABLE4,
    TABLE5,
    TABLE6,
    Test,
)
from analysis.report.read import read_run
from analysis.report.runs import SCALED, model_label
from configs.schema import TrainConfig
from configs.store import compose_config, read_yaml, to_dict
from data.sources.imagenet import has_tars
from data.sources.index import class_names, scan_folder
from data.synthetic import make_synthetic
from engine.run_folder import differences

DONE = "done"
RUNS = Path("runs")
IMAGENET = {"train": 1_281_167, "val": 50_000}
_OF_EVAL = ("loader", "device=", "timeout=", "data.on_error=")  # keys that eval.py shares

# What a target needs: experiments, and how their networks are tested.
_TABLES = {
    table.name: [(row.experiment, row.test) for row in table.rows if row.experiment]
    for table in (TABLE2, TABLE4, TABLE5, TABLE6, SEC22)
}
NEEDS: dict[str, list[tuple[str, Test | None]]] = {
    "table1": [(name, None) for name in SLOPE_EXPERIMENTS],
    "table3": [],
    **{name: list(dict.fromkeys(rows)) for name, rows in _TABLES.items()},
    "table7": [(ENSEMBLE, DENSE)],
    **{figure.name: [(name, None) for _, name in figure.curves] for figure in (FIG2, FIG3)},
    "fig4": [(ENSEMBLE, DENSE)],
    "fig5": [(ENSEMBLE, DENSE)],
    "fig6": [(ENSEMBLE, DENSE)],
    "fig7": [(ENSEMBLE, DENSE), (FIG7_BASELINE, DENSE)],
}
NEEDS["sec22"] += [(name, None) for _, name in SEC22_DEPTH.curves]
TARGETS = sorted(NEEDS, key=lambda name: (("t", "f", "s").index(name[0]), name))


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    targets: Sequence[str]
    scaled: bool = False
    data: str | None = None  # root of the data set
    runs: Path = RUNS
    seeds: Sequence[int] | None = None
    steps: int | None = None  # of scaled runs
    overrides: Sequence[str] = ()  # further arguments of train.py


@dataclass(frozen=True)
class Job:
    """A training run or an evaluation."""

    name: str  # of its folder in runs/
    program: str  # train.py | eval.py
    arguments: Sequence[str]
    folder: Path
    images: int  # to be processed in all
    seen: int  # of them
    state: str  # done | resume at step N | to do
    model: str  # as throughputs are kept by
    needs: Sequence["Job"] = ()
    dense: Sequence[int] = ()  # scales of a dense test, each with as many images

    @property
    def done(self) -> bool:
        return self.state == DONE


def data_arguments(root: str | None) -> list[str]:
    """Keys of train.py for a data set; raises UserError if it is none."""
    if root is None:
        return []
    path = Path(root).expanduser().absolute()
    imagenet = path.is_dir() and (has_tars(path) or len(class_names(path, "train")) == 1000)
    return [*([] if imagenet else ["data=folder"]), f"data.root={root}"]


def plan(request: Request) -> list[Job]:
    """All jobs, each once, in an order in which they can be done.

    Raises UserError for what train.py would refuse to compose, or a data set that is not there.
    """
    planner = _Planner(request)
    for target in request.targets:
        for experiment, test in NEEDS[target]:
            planner.add(experiment, test)
    return list(planner.jobs.values())


class _Planner:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.data = data_arguments(request.data)
        self.jobs: dict[str, Job] = {}  # by result file, or folder of the run
        self.training = cache(self._training)

    def add(self, experiment: str, test: Test | None) -> None:
        """The runs of an experiment, one for each seed, and their tests."""
        if experiment == ENSEMBLE:
            self.ensemble()
            return
        for seed in self.request.seeds or (SCALED_SEEDS if self.request.scaled else (0,)):
            self.member(experiment, seed, test)

    def member(self, experiment: str, seed: int, test: Test | None) -> Job:
        """A run, and its test if it is to have one; returns the last of them."""
        run, config = self.training(experiment, seed)
        if test is None:
            return run
        save = not self.request.scaled and (experiment, seed) in ENSEMBLE_MEMBERS and test is DENSE
        return self.testing(run, config, test, save)

    def _training(self, experiment: str, seed: int) -> tuple[Job, TrainConfig]:
        request = self.request
        name = SCALED + experiment if request.scaled else experiment
        arguments = [f"experiment={name}", f"seed={seed}", *self.data]
        arguments += [f"max_steps={request.steps}"] if request.steps else []
        arguments += [f"runs={request.runs}"] if request.runs != RUNS else []
        arguments += request.overrides
        config = compose_config(arguments, TrainConfig)
        folder = Path(config.runs) / config.name
        images = config.epochs * _count(config, "train")
        if config.max_steps is not None:
            images = min(images, config.max_steps * config.batch_size)
        state, steps = _progress(folder, config)
        place = (config.name, "train.py", arguments, folder)
        names = (config.model.name, config.model.extra_convs)
        model = model_label(*names, scaled=request.scaled)
        seen = min(images, steps * config.batch_size)
        job = Job(*place, images, seen, state, model)
        return self.jobs.setdefault(str(folder), job), config

    def testing(self, run: Job, config: TrainConfig, test: Test, save: bool) -> Job:
        """The test of a run's last checkpoint; save: its predictions too, for an ensemble."""
        test = SCALED_TESTS[test] if self.request.scaled else test
        last = run.folder / "checkpoints" / "last.pt"
        images = min(_count(config, "val"), test.subset or IMAGENET["train"])
        return self.evaluation(
            run.name, run.folder, [last], test, images, save, run.model, [run], self.request.data
        )

    def evaluation(
        self,
        name: str,
        folder: Path,
        files: Sequence[Path],
        test: Test,
        images: int,
        save: bool,
        model: str,
        needs: Sequence[Job],
        root: str | None,
    ) -> Job:
        out = folder / f"result-{test.name}.json"
        if str(out) in self.jobs:
            return self.jobs[str(out)]
        several = f"[{','.join(map(str, files))}]"
        arguments = [f"checkpoint={files[0] if len(files) == 1 else several}"]
        arguments += [f"views={test.views}", f"scales={list(test.scales)}".replace(" ", "")]
        arguments += [f"subset={test.subset}"] if test.subset else []
        arguments += [f"data.root={root}"] if root else []
        arguments += [f"out={out}"]
        products = [out]
        if save:
            products.append(folder / f"predictions-{test.name}.npz")
            arguments.append(f"save_predictions={products[1]}")
        arguments += [key for key in self.request.overrides if key.startswith(_OF_EVAL)]
        new = all(job.done for job in needs) and _newer(products, files)
        images *= 1 if name.startswith(ENSEMBLE) else len(test.scales)
        state = DONE if new else "to do"
        seen = images if new else 0
        dense = test.scales if test.views == "dense" and model else ()
        job = Job(
            name, "eval.py", arguments, folder, images, seen, state, model, tuple(needs), dense
        )
        self.jobs[str(out)] = job
        return job

    def ensemble(self) -> None:
        """Table 7: the six models' saved predictions together."""
        tests = [self.member(*member, DENSE) for member in ENSEMBLE_MEMBERS]
        _, config = self.training(*ENSEMBLE_MEMBERS[0])
        files = [test.folder / "predictions-dense.npz" for test in tests]
        name = f"{ENSEMBLE}-{config.data.name}"
        images = _count(config, "val")
        folder = Path(config.runs) / name
        self.evaluation(name, folder, files, DENSE, images, True, "", tests, config.data.root)


def _count(config: TrainConfig, split: str) -> int:
    """Images of a split; ImageNet need not be there to plan with it."""
    if config.data.name == "imagenet":
        return IMAGENET[split]
    if config.data.name == "synthetic":
        make_synthetic(Path(config.data.root))
    return len(scan_folder(config.data.root, split))


def _progress(folder: Path, config: TrainConfig) -> tuple[str, int]:
    """State of a run, and steps done; to do where the folder holds another run."""
    found = read_run(folder, whole=False)
    if found is None or differences(read_yaml(folder / "config.yaml"), to_dict(config)):
        return "to do", 0
    complete = found.epochs_done >= config.epochs or (
        config.max_steps is not None and found.steps >= config.max_steps
    )
    if complete and found.validated == found.steps:
        return DONE, found.steps
    return (f"resume at step {found.steps:,}" if found.steps else "to do"), found.steps


def _newer(products: Sequence[Path], sources: Sequence[Path]) -> bool:
    """Whether all products are there, and none is older than a source."""
    if not all(path.is_file() for path in [*products, *sources]):
        return False
    oldest = min(path.stat().st_mtime for path in products)
    return oldest >= max(path.stat().st_mtime for path in sources)
