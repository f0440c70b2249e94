"""Reads run folders into records."""

import json
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from analysis.report.paper import CURVE_FIGURES, SLOPE_EXPERIMENTS
from analysis.report.runs import Edition, Run, Session, load, to_json
from common.errors import UserError, refusing
from common.files import read_json_lines
from configs.keys import Effect
from configs.schema import TrainConfig
from configs.store import FlatConfig, changes, compose_config, flatten, read_yaml, to_dict
from engine.progress import Validation
from models.learned import CONV1, Slopes, filter_grid, slopes_by_layer, slopes_of

if TYPE_CHECKING:
    from evaluation.result import Result

# Keys of eval.py that hold paths or do not change the result.
_IRRELEVANT = ("data", "out", "save_predictions", "checkpoint", "loader")

_CURVE_POINTS = 300  # of a loss curve
_LAYER_POINTS = 40  # of a layer's gradient norms, and of its slopes


def collect(runs: Path, results: Path) -> list[Run]:
    """Write a record of each experiment's run folder; returns all records, also earlier ones.

    Raises UserError if a folder or a record cannot be read, or a record cannot be written.
    """
    records = results / "records"
    with refusing(OSError, what=f"cannot write into {records}"):
        records.mkdir(parents=True, exist_ok=True)
        for folder in sorted(runs.iterdir()) if runs.is_dir() else []:
            run = read_run(folder) if folder.is_dir() else None
            if run is not None and run.experiment is not None:
                (records / f"{run.name}.json").write_text(to_json(run))
    return load(results)


def read_run(folder: Path) -> Run | None:
    """The run, or the ensemble, in this folder; None if there is none.

    Raises UserError if one of its files cannot be read.
    """
    if (folder / "config.yaml").is_file():
        run = read_progress(folder)
        _add_metrics(run, read_json_lines(folder / "metrics.jsonl"))
        return run
    experiment, _, data = folder.name.rpartition("-")
    run = Run(folder.name, experiment, data=data, results=_read_results(folder))
    if not run.is_ensemble or not run.results:
        return None
    member = next(iter(run.results.values()))["checkpoints"][0].partition("/")[0]
    if (folder.parent / member / "config.yaml").is_file():
        run.overrides = read_progress(folder.parent / member).overrides
    return run


def read_progress(folder: Path) -> Run:
    """The run in a folder with a config.yaml, without its curves.

    Raises UserError if one of its files cannot be read.
    """
    config = flatten(read_yaml(folder / "config.yaml"))
    with refusing(TypeError, what=f"{folder / 'sessions.jsonl'} is of another version"):
        sessions = [Session(**line) for line in read_json_lines(folder / "sessions.jsonl")]
    run = Run(
        name=folder.name,
        experiment=config["experiment"],
        seed=config["seed"],
        data=config["data.name"],
        source=Path(config["data.root"]).name,
        batch_size=config["batch_size"],
        epochs=config["epochs"],
        max_steps=config["max_steps"],
        sessions=sessions,
        results=_read_results(folder),
    )
    model, extra_convs = config["model.name"], config["model.extra_convs"]
    run.model = Edition(run.scaled).model_label(model, extra_convs)
    _add_differences(run, config)
    _add_checkpoint(run, folder / "checkpoints" / "last.pt")
    return run


def _add_differences(run: Run, config: FlatConfig) -> None:
    """The keys that differ from the experiment's file."""
    if run.experiment is None:
        return
    try:
        expected = _experiment_config(run.experiment, run.data)
    except UserError as error:
        run.changed = [f"experiment {run.experiment} cannot be composed ({error})"]
        return
    differing = changes(expected, config)
    other = [change for change in differing if change.effect is Effect.OTHER]
    run.noted = [str(change) for change in differing if change.effect is Effect.NOTED]
    if run.scaled:  # it stands in a table of its own, which names the keys
        run.overrides = {change.key: change.new for change in other}
        run.noted = [*map(str, other), *run.noted]
    else:
        run.changed = [str(change) for change in other]


@cache
def _experiment_config(experiment: str, data: str) -> FlatConfig:
    """The configuration of the experiment's file on this data set."""
    arguments = [f"experiment={experiment}", f"data={data}", "data.root=somewhere"]
    return flatten(to_dict(compose_config(arguments, TrainConfig)))


def _add_checkpoint(run: Run, path: Path) -> None:
    """How far the run has trained, its slopes and conv1's filters."""
    if not path.is_file():
        return
    import torch  # not above: reproduce.py --help and --dry-run do without it

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        progress, network = state["progress"], state["network"]
    except Exception as error:  # torch raises many kinds on a damaged file
        run.noted.append(f"last.pt cannot be read ({type(error).__name__})")
        return
    run.steps, run.epochs_done = progress["step"], len(progress["val_errors"])
    run.num_classes = len(state["classes"])
    run.validated = progress["validated"]
    # A full run that max_steps ends early is not the paper's; a scaled run is meant to end there.
    run.finished = run.has_reached(run.max_steps if run.scaled else None)
    run.slopes = {layer: slopes_of(values) for layer, values in slopes_by_layer(network).items()}
    if run.base_experiment in SLOPE_EXPERIMENTS and CONV1 in network:
        png = BytesIO()
        Image.fromarray(filter_grid(network[CONV1])).save(png, "png", optimize=True)
        run.filters = b64encode(png.getvalue()).decode()


def _add_metrics(run: Run, lines: Sequence[dict[str, Any]]) -> None:
    run.val = [Validation.of(line) for line in lines if line["kind"] == "val"]
    for line in lines:
        if line["kind"] == "commit":
            run.trained_by = line["commit"]
    train = [line for line in lines if line["kind"] == "train"]
    losses = _thinned([(line["step"], line["loss"]) for line in train])
    run.train = [(step, float(f"{loss:.5g}")) for step, loss in losses]
    run.steps = max([run.steps, *(line["step"] for line in train)])
    # The rate of a line is that of the steps since the previous line, validation or resume.
    previous, seconds = 0, 0.0
    for line in train:
        seconds += (line["step"] - previous) * run.batch_size / line["images_per_second"]
        previous = line["step"]
    run.hours = seconds / 3600
    rates = [line["images_per_second"] for line in train]
    run.images_per_second = float(np.median(rates)) if rates else None
    if any(run.base_experiment in figure.experiments for figure in CURVE_FIGURES):
        for line in _sampled(lines, "gradients"):
            for layer, norm in line["norms"].items():
                run.gradients.setdefault(layer, []).append((line["step"], norm))
    if run.base_experiment in SLOPE_EXPERIMENTS:
        run.slopes_over_time = [
            (line["step"], {layer: Slopes(**slopes) for layer, slopes in line["layers"].items()})
            for line in _sampled(lines, "slopes")
        ]


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means of groups of equally many points, at the last step of each group."""
    every = max(1, -(-len(points) // _CURVE_POINTS))
    groups = [points[i : i + every] for i in range(0, len(points), every)]
    return [(group[-1][0], float(np.mean([loss for _, loss in group]))) for group in groups]


def _sampled(lines: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Evenly spaced lines of this kind, with the first and the last."""
    lines = [line for line in lines if line["kind"] == kind]
    every = max(1, len(lines) // _LAYER_POINTS)
    return [*lines[:-1:every], *lines[-1:]]


def _read_results(folder: Path) -> "dict[str, Result]":
    """Results with errors, by file name; none that is older than the last checkpoint."""
    last = folder / "checkpoints" / "last.pt"
    since = last.stat().st_mtime if last.exists() else 0
    results = {}
    for path in sorted(folder.glob("result*.json")):
        with refusing(ValueError, what=f"{path} is damaged", also="remove it and test again"):
            result = json.loads(path.read_text())
        if "combined" in result and path.stat().st_mtime >= since:
            result["checkpoints"] = _tested_networks(result, folder)
            for key in _IRRELEVANT:
                result["config"].pop(key, None)
            results[path.name] = result
    return results


def _tested_networks(result: dict[str, Any], folder: Path) -> list[str]:
    """The networks behind a result in this folder: runs/NAME/checkpoints/last.pt -> NAME/last.pt.

    If the run was renamed after the test, NAME is its present name.
    """
    files = [Path(file) for file in result["checkpoints"]]
    homes = [file.parents[file.parent.name == "checkpoints"] for file in files]
    out = result["config"].get("out")
    old_folder = Path(out).parent if out else homes[0]
    is_run = (folder / "config.yaml").is_file()  # an ensemble's networks are all elsewhere
    names = [folder.name if is_run and home == old_folder else home.name for home in homes]
    return [f"{name}/{file.name}" for name, file in zip(names, files, strict=True)]
