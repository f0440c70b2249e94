"""Which runs and tests a table or figure needs, and the command line of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean

from analysis.report.paper import (
    CURVE_FIGURES,
    DENSE,
    ENSEMBLE,
    ENSEMBLE_MEMBERS,
    ERROR_TABLES,
    FIG7_BASELINE,
    SCALED_SEEDS,
    SEC22_DEPTH,
    SLOPE_EXPERIMENTS,
    Test,
)
from analysis.report.read import read_progress
from analysis.report.runs import Edition, Run
from configs.schema import TrainConfig
from configs.store import compose_config, read_yaml, to_dict
from data.sources.imagenet import NUM_IMAGES, has_tars
from data.sources.index import class_names, scan_folder
from data.synthetic import make_synthetic
from engine.run_folder import differences
from models.describe import describe

RUNS = Path("runs")
_OF_EVAL = ("loader", "device=", "timeout=", "data.on_error=")  # keys that eval.py shares

# The experiments that a target needs, and how their networks are tested (None: not at all).
NEEDS: dict[str, list[tuple[str, Test | None]]] = {
    "table1": [(name, None) for name in SLOPE_EXPERIMENTS],
    "table3": [],
    **{
        table.name: list(dict.fromkeys((r.experiment, r.test) for r in table.rows if r.experiment))
        for table in ERROR_TABLES
    },
    **{fig.name: [(name, None) for name in fig.experiments] for fig in CURVE_FIGURES},
    "fig4": [(ENSEMBLE, DENSE)],
    "fig5": [(ENSEMBLE, DENSE)],
    "fig6": [(ENSEMBLE, DENSE)],
    "fig7": [(ENSEMBLE, DENSE), (FIG7_BASELINE, DENSE)],
}
NEEDS["sec22"] += NEEDS.pop(SEC22_DEPTH.name)
TARGETS = sorted(NEEDS, key=lambda name: ("tfs".index(name[0]), name))  # tables, figures, sec22


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    targets: Sequence[str]
    scaled: bool = False
    data: str | None = None  # root of the data set
    runs: Path = RUNS
    seeds: Sequence[int] | None = None  # None: the default ones
    steps: int | None = None  # of scaled runs
    overrides: Sequence[str] = ()  # further keys of train.py


@dataclass(frozen=True)
class Job:
    """A training run or a test."""

    name: str
    program: str  # train.py | eval.py
    arguments: Sequence[str]
    folder: Path
    config: TrainConfig  # of the run; of a test: of the (first) network
    images: int  # in all; a test counts them once for each scale
    done: bool
    seen: int = 0  # images that a training run has processed
    steps: int = 0  # that a training run has done
    model: str = ""  # its throughput is listed under this name; "": several models
    needs: Sequence["Job"] = ()
    dense_scales: Sequence[int] = ()  # of a dense test
    multiply_adds: float = 0  # per image, mean over the scales; 0: not estimated
    wanted_by: list[str] = field(default_factory=list)  # tables and figures; plan() adds them

    @property
    def left(self) -> int:
        """Images still to be processed."""
        return 0 if self.done else self.images - self.seen

    @property
    def state(self) -> str:
        """For a person."""
        if self.done:
            return "done"
        return f"resume at step {self.steps:,}" if self.steps else "to do"


def data_arguments(root: str | None) -> list[str]:
    """The keys of train.py for a data set; raises UserError if there is none at `root`."""
    if root is None:
        return []
    path = Path(root).expanduser().absolute()
    is_imagenet = path.is_dir() and (has_tars(path) or len(class_names(path, "train")) == 1000)
    return [*([] if is_imagenet else ["data=folder"]), f"data.root={root}"]


def plan(request: Request) -> list[Job]:
    """All jobs, each once, and after the jobs that it needs.

    Raises UserError for keys that train.py would refuse, or if the data set is not there.
    """
    planner = _Planner(request)
    for target in request.targets:
        for experiment, test in NEEDS[target]:
            _note_target(target, planner.add(experiment, test))
    return list(planner.jobs.values())


def _note_target(target: str, jobs: Sequence[Job]) -> None:
    """Note that this target needs these jobs, and with them the jobs that they need."""
    for job in jobs:
        if target not in job.wanted_by:
            job.wanted_by.append(target)
        _note_target(target, job.needs)


class _Planner:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.edition = Edition(scaled=request.scaled)
        self.data = data_arguments(request.data)
        self.jobs: dict[Path, Job] = {}  # by result file, or folder of the run
        self.train = cache(self._train)

    def add(self, experiment: str, test: Test | None) -> list[Job]:
        """The runs of an experiment, one for each seed, or their tests."""
        if experiment == ENSEMBLE:
            return [self.combine()]
        seeds = self.request.seeds or (SCALED_SEEDS if self.request.scaled else (0,))
        if test is None:
            return [self.train(experiment, seed) for seed in seeds]
        return [self.test(experiment, seed, test) for seed in seeds]

    def combine(self) -> Job:
        """Table 7: the saved predictions of the six models, combined."""
        tests = [self.test(experiment, seed, DENSE) for experiment, seed in ENSEMBLE_MEMBERS]
        config = tests[0].config
        return self.evaluate(
            DENSE,
            folder=Path(config.runs) / f"{self.edition.experiment(ENSEMBLE)}-{config.data.name}",
            files=[job.folder / f"predictions-{DENSE.name}.npz" for job in tests],
            needs=tests,
            root=config.data.root,
            save=True,
        )

    def _train(self, experiment: str, seed: int) -> Job:
        request = self.request
        arguments = [f"experiment={self.edition.experiment(experiment)}", f"seed={seed}"]
        arguments += self.data
        arguments += [f"max_steps={request.steps}"] if request.steps else []
        arguments += [f"runs={request.runs}"] if request.runs != RUNS else []
        arguments += request.overrides
        config = compose_config(arguments, TrainConfig)
        images = config.epochs * _count_images(config, "train")
        if config.max_steps is not None:
            images = min(images, config.max_steps * config.batch_size)
        run = _existing_run(config)
        job = Job(
            name=config.name,
            program="train.py",
            arguments=arguments,
            folder=config.folder,
            config=config,
            images=images,
            seen=min(images, run.steps * config.batch_size) if run else 0,
            done=run is not None and run.has_reached(config.max_steps),
            steps=run.steps if run else 0,
            model=self.edition.model_label(config.model.name, config.model.extra_convs),
            multiply_adds=3 * _forward(config),  # backward costs twice what forward does
        )
        return self.jobs.setdefault(job.folder, job)

    def test(self, experiment: str, seed: int, test: Test) -> Job:
        """The test of a run's last checkpoint; members of the ensemble save their predictions."""
        run = self.train(experiment, seed)
        return self.evaluate(
            test,
            folder=run.folder,
            files=[run.folder / "checkpoints" / "last.pt"],
            needs=[run],
            root=self.request.data,
            save=(experiment, seed) in ENSEMBLE_MEMBERS and test is DENSE,
        )

    def evaluate(
        self,
        test: Test,
        *,
        folder: Path,
        files: Sequence[Path],
        needs: Sequence[Job],
        root: str | None,
        save: bool,
    ) -> Job:
        """The test of a checkpoint, or of several networks' saved predictions, from `files`.

        save: whether to save its own predictions.
        """
        config = needs[0].config
        if self.request.scaled:
            test = test.scaled(config.data.crop)
        out = folder / f"result-{test.name}.json"
        arguments = _eval_arguments(test, files, root, out)
        products = [out]
        if save:
            products.append(folder / f"predictions-{test.name}.npz")
            arguments.append(f"save_predictions={products[1]}")
        arguments += [key for key in self.request.overrides if key.startswith(_OF_EVAL)]
        images = _count_images(config, "val")
        images = min(images, test.subset or images)
        model, multiply_adds = "", 0.0
        dense_scales: Sequence[int] = ()
        if len(needs) == 1:  # combining predictions costs nothing in comparison
            images *= len(test.scales)
            model = needs[0].model
            dense_scales = test.scales if test.views == "dense" else ()
            crops = [_crops(test.views, s / config.data.validation_scale) for s in test.scales]
            multiply_adds = _forward(config) * mean(crops)
        job = Job(
            name=folder.name,
            program="eval.py",
            arguments=arguments,
            folder=folder,
            config=config,
            images=images,
            done=all(job.done for job in needs) and _are_newer(products, files),
            model=model,
            needs=needs,
            dense_scales=dense_scales,
            multiply_adds=multiply_adds,
        )
        return self.jobs.setdefault(out, job)


def _eval_arguments(test: Test, files: Sequence[Path], root: str | None, out: Path) -> list[str]:
    """The arguments of eval.py for a test of one file, or of several together."""
    checkpoint = files[0] if len(files) == 1 else f"[{','.join(map(str, files))}]"
    arguments = [f"checkpoint={checkpoint}", f"views={test.views}"]
    arguments += [f"scales={list(test.scales)}".replace(" ", "")]
    arguments += [f"subset={test.subset}"] if test.subset else []
    arguments += [f"data.root={root}"] if root else []
    return [*arguments, f"out={out}"]


def _forward(config: TrainConfig) -> int:
    """Multiply-adds of the forward pass of one training crop."""
    crop = config.data.crop
    return describe(
        config.model, config.act, config.init, num_classes=1000, crop=crop
    ).multiply_adds


def _crops(views: str, scale: float) -> float:
    """The work of testing one image, in crops; scale: relative to that of validation.

    Dense: the trunk over an image of 4:3, (256 / 224)^2 of a crop on the shorter side, and its
    flip. The windows' fc layers come on top.
    """
    return 2 * (4 / 3) * (256 / 224 * scale) ** 2 if views == "dense" else 10


def _count_images(config: TrainConfig, split: str) -> int:
    """Images of a split; ImageNet need not be there to plan with it."""
    if config.data.name == "imagenet":
        return NUM_IMAGES[split]
    if config.data.name == "synthetic":
        make_synthetic(Path(config.data.root))
    return len(scan_folder(config.data.root, split))


def _existing_run(config: TrainConfig) -> Run | None:
    """The run of this configuration so far; None if its folder holds none, or another."""
    path = config.folder / "config.yaml"
    if not path.is_file() or differences(read_yaml(path), to_dict(config)):
        return None
    return read_progress(config.folder)


def _are_newer(products: Sequence[Path], sources: Sequence[Path]) -> bool:
    """Whether all products are there, and none is older than a source."""
    if not all(path.is_file() for path in [*products, *sources]):
        return False
    oldest_product = min(path.stat().st_mtime for path in products)
    return oldest_product >= max(path.stat().st_mtime for path in sources)
