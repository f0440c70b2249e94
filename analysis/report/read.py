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

# Keys of an evaluation that hold paths or do not change its result.
_IRRELEVANT = ("data", "out", "save_predictions", "checkpoint", "loader")

_CURVE_POINTS = 300  # of a loss curve
_LAYER_POINTS = 40  # of a layer's gradient norms, and of its slopes


def collect(runs: Path, results: Path) -> list[Run]:
    """Read all folders of experiments' runs, and return the records of all runs.

    Records of runs whose folder is not there stay as they are. Raises UserError if a folder or a
    record cannot be read, or a record not written.
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

    Raises UserError if a file of it cannot be read.
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
    """What a run folder with a config.yaml holds and how far it is, without its curves.

    Raises UserError if a file of it cannot be read.
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
    edition = Edition(run.scaled, run.data)
    run.model = edition.model_label(config["model.name"], config["model.extra_convs"])
    _add_differences(run, config)
    _add_checkpoint(run, folder / "checkpoints" / "last.pt")
    return run


def _add_differences(run: Run, config: FlatConfig) -> None:
    """Where it differs from its experiment's file: what counts, and what is only noted."""
    if run.experiment is None:
        return
    try:
        asked = _experiment_config(run.experiment, run.data)
    except UserError as error:
        run.changed = [f"experiment {run.experiment} cannot be composed ({error})"]
        return
    found = changes(asked, config)
    other = [change for change in found if change.effect is Effect.OTHER]
    run.noted = [str(change) for change in found if change.effect is Effect.NOTED]
    if run.scaled:  # such runs have tables of their own, which say so
        run.overrides = {change.key: change.new for change in other}
        run.noted = [*map(str, other), *run.noted]
    else:
        run.changed = [str(change) for change in other]


@cache
def _experiment_config(experiment: str, data: str) -> FlatConfig:
    """What the experiment's file asks for on this data set."""
    arguments = [f"experiment={experiment}", f"data={data}", "data.root=somewhere"]
    return flatten(to_dict(compose_config(arguments, TrainConfig)))


def _add_checkpoint(run: Run, path: Path) -> None:
    """How far the run is, and its slopes."""
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
    # A full run that max_steps ended early is not the paper's; a scaled one is meant to end there.
    run.finished = run.has_reached(run.max_steps if run.scaled else None)
    layers = slopes_by_layer(network)
    run.slopes = {layer: slopes_of(values) for layer, values in layers.items()}
    if _is_one_of(run, SLOPE_EXPERIMENTS) and CONV1 in network:
        png = BytesIO()
        Image.fromarray(filter_grid(network[CONV1])).save(png, "png", optimize=True)
        run.filters = b64encode(png.getvalue()).decode()


def _add_metrics(run: Run, lines: Sequence[dict[str, Any]]) -> None:
    run.val = [Validation.of(line) for line in lines if line["kind"] == "val"]
    versions = [line["commit"] for line in lines if line["kind"] == "commit"]
    run.trained_by = versions[-1] if versions else None
    train = [line for line in lines if line["kind"] == "train"]
    losses = _thinned([(line["step"], line["loss"]) for line in train])
    run.train = [(step, float(f"{loss:.5g}")) for step, loss in losses]
    run.steps = max([run.steps, *(line["step"] for line in train)])
    # A line's rate is of the steps since the line, validation or resume before it.
    before, seconds = 0, 0.0
    for line in train:
        seconds += (line["step"] - before) * run.batch_size / line["images_per_second"]
        before = line["step"]
    run.hours = seconds / 3600
    rates = [line["images_per_second"] for line in train]
    run.images_per_second = float(np.median(rates)) if rates else None
    if _is_one_of(run, [name for figure in CURVE_FIGURES for name in figure.experiments]):
        run.gradients = _gradients([line for line in lines if line["kind"] == "gradients"])
    if _is_one_of(run, SLOPE_EXPERIMENTS):
        points = [line for line in lines if line["kind"] == "slopes"]
        every = max(1, len(points) // _LAYER_POINTS)
        run.slopes_over_time = [
            (line["step"], {layer: Slopes(**own) for layer, own in line["layers"].items()})
            for line in [*points[:-1:every], *points[-1:]]
        ]


def _is_one_of(run: Run, experiments: Sequence[str]) -> bool:
    edition = Edition(run.scaled, run.data)
    return run.experiment in [edition.experiment(name) for name in experiments]


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means of equally many points each, at the step of the last."""
    every = max(1, -(-len(points) // _CURVE_POINTS))
    groups = [points[i : i + every] for i in range(0, len(points), every)]
    return [(group[-1][0], float(np.mean([loss for _, loss in group]))) for group in groups]


def _gradients(lines: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Gradient norms of the weights by layer: step and norm, with the first and the last line."""
    every = max(1, len(lines) // _LAYER_POINTS)
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in [*lines[:-1:every], *lines[-1:]]:
        for layer, norm in line["norms"].items():
            curves.setdefault(layer, []).append((line["step"], norm))
    return curves


def _read_results(folder: Path) -> "dict[str, Result]":
    """Result files with errors, not older than the checkpoint they tested."""
    last = folder / "checkpoints" / "last.pt"
    since = last.stat().st_mtime if last.exists() else 0
    results = {}
    for path in sorted(folder.glob("result*.json")):
        try:
            result = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged ({error}): remove it and test again") from error
        if "combined" in result and path.stat().st_mtime >= since:
            result["checkpoints"] = _networks(result, folder)
            config = result["config"]
            result["config"] = {key: config[key] for key in config if key not in _IRRELEVANT}
            results[path.name] = result
    return results


def _networks(result: dict[str, Any], folder: Path) -> list[str]:
    """What a result of this folder has tested: runs/NAME/checkpoints/last.pt -> NAME/last.pt.

    A run that was renamed since then, with its results, has the name that it has now.
    """
    files = [Path(file) for file in result["checkpoints"]]
    homes = [file.parents[file.parent.name == "checkpoints"] for file in files]
    out = result["config"].get("out")
    own = Path(out).parent if out else homes[0]
    is_run = (folder / "config.yaml").is_file()  # an ensemble's networks are all elsewhere
    names = [folder.name if is_run and home == own else home.name for home in homes]
    return [f"{name}/{file.name}" for name, file in zip(names, files, strict=True)]
