"""Reads a run's folder into its record."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analysis.report.paper import CURVE_FIGURES, ENSEMBLE
from analysis.report.runs import SCALED, Run, model_label
from common.errors import UserError
from common.files import read_json_lines
from configs.schema import TrainConfig
from configs.store import compose_config, flatten, read_yaml, to_dict

QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # percent, of the slopes of a layer

# What may differ from the experiment's file: it changes no number but for rounding, or is told
# elsewhere (data set, seed, length).
_FREE = {
    *("name", "runs", "seed", "max_steps", "device", "timeout", "log_every", "compile"),
    *("micro_batch", "parallel", "val_every", "data.root", "data.on_error", "data.num_classes"),
}
_FREE_GROUPS = ("loader.", "checkpoint.")
# A run that differs in these still stands in the tables, with a note.
_NOTED = ("precision", "data.mean", "schedule.", "skip_steps")

# Keys of an evaluation that hold paths, or do not matter.
_PLACES = ("data", "out", "save_predictions", "checkpoint", "loader")

_CURVE_POINTS = 300  # of a loss curve
_LAYER_POINTS = 40  # of a layer's gradient norms


def read_run(folder: Path, *, whole: bool = True) -> Run | None:
    """The run, or the ensemble, in this folder; None if there is none.

    whole=False: only what it is and how far, without curves. Raises UserError if a file of it
    cannot be read.
    """
    results = _results(folder)
    if not (folder / "config.yaml").is_file():
        if not results:
            return None
        kind, _, data = folder.name.partition("-")
        return Run(folder.name, kind if kind == ENSEMBLE else None, data=data, results=results)
    config = read_yaml(folder / "config.yaml")
    settings = flatten(config)
    run = Run(
        name=folder.name,
        experiment=settings["experiment"],
        seed=settings["seed"],
        data=settings["data.name"],
        source=Path(settings["data.root"]).name,
        batch_size=settings["batch_size"],
        epochs=settings["epochs"],
        max_steps=settings["max_steps"],
        sessions=read_json_lines(folder / "sessions.jsonl"),
        results=results,
    )
    names = (settings["model.name"], settings["model.extra_convs"])
    run.model = model_label(*names, scaled=run.scaled)
    limit = settings["max_steps"] if run.scaled else None
    run.changed, run.noted = _differences(settings)
    _read_checkpoint(run, folder / "checkpoints" / "last.pt", limit)
    if not whole:
        return run
    _read_metrics(run, read_json_lines(folder / "metrics.jsonl"))
    curves = {name for figure in CURVE_FIGURES for _, name in figure.curves}
    if (run.experiment or "").removeprefix(SCALED) in curves:
        run.gradients = _gradients(folder / "tensorboard")
    return run


def _differences(settings: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What a run has changed in its experiment's file, and what of it is only to be noted."""
    if settings["experiment"] is None:
        return [], []
    try:
        asked = _asked(settings["experiment"], settings["data.name"])
    except UserError as error:
        return [f"experiment {settings['experiment']} cannot be composed ({error})"], []
    changed, noted = list[str](), list[str]()
    for key in sorted(asked.keys() | settings.keys()):
        old, new = asked.get(key), settings.get(key)
        if old == new or key in _FREE or key.startswith(_FREE_GROUPS):
            continue
        (noted if key.startswith(_NOTED) else changed).append(f"{key}: {old} -> {new}")
    return changed, noted


@cache
def _asked(experiment: str, data: str) -> dict[str, Any]:
    """What the experiment's file asks for on this data set."""
    arguments = [f"experiment={experiment}", f"data={data}", "data.root=somewhere"]
    return flatten(to_dict(compose_config(arguments, TrainConfig)))


def _read_checkpoint(run: Run, path: Path, limit: int | None) -> None:
    """How far the run is, and its slopes. `limit`: steps that are the whole of a scaled run."""
    if not path.is_file():
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        progress, network = state["progress"], state["network"]
    except Exception as error:  # torch raises many kinds on a damaged file
        run.noted.append(f"last.pt cannot be read ({type(error).__name__})")
        return
    run.steps, run.epochs_done = progress["step"], len(progress["val_errors"])
    run.num_classes = len(state["classes"])
    run.validated = progress["validated"]
    run.finished = run.validated == run.steps and (
        run.epochs_done >= run.epochs or (limit is not None and run.steps >= limit)
    )
    for name, values in network.items():
        if name.endswith(".slopes"):
            slopes = values.double().flatten().numpy()
            quantiles = [round(float(q), 5) for q in np.percentile(slopes, QUANTILES)]
            layer = name.split(".")[-2].replace("rect", "conv" if "trunk" in name else "fc")
            facts = {"mean": float(slopes.mean()), "quantiles": quantiles, "count": len(slopes)}
            run.slopes[layer] = facts


def _read_metrics(run: Run, lines: Sequence[dict[str, Any]]) -> None:
    keys = ("step", "epoch", "top1_error", "top5_error", "images")
    run.val = [{key: line[key] for key in keys} for line in lines if line["kind"] == "val"]
    train = [line for line in lines if line["kind"] == "train"]
    run.train = [(step, float(f"{loss:.5g}")) for step, loss in _thinned(train)]
    run.steps = max([run.steps, *(line["step"] for line in train)])
    # A line's rate is of the steps since the line, validation or resume before it.
    before, seconds = 0, 0.0
    for line in train:
        seconds += (line["step"] - before) * run.batch_size / line["images_per_second"]
        before = line["step"]
    run.hours = seconds / 3600
    rates = [line["images_per_second"] for line in train]
    run.images_per_second = float(np.median(rates)) if rates else None


def _thinned(train: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Means of equally many lines each: (last step, loss)."""
    every = max(1, -(-len(train) // _CURVE_POINTS))
    groups = [train[i : i + every] for i in range(0, len(train), every)]
    return [(group[-1]["step"], float(np.mean([g["loss"] for g in group]))) for group in groups]


def _gradients(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Gradient norms of the weights by layer, as TensorBoard has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        if tag.startswith("gradient_norm/") and tag.endswith(".weight"):
            points = events.Scalars(tag)
            every = max(1, len(points) // _LAYER_POINTS)
            chosen = [*points[:-1:every], points[-1]]
            layer = tag.split(".")[-2]
            found[layer] = [(point.step, float(f"{point.value:.4g}")) for point in chosen]
    return found


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    """Result files with errors, not older than the checkpoint they tested."""
    last = folder / "checkpoints" / "last.pt"
    since = last.stat().st_mtime if last.exists() else 0
    found = {}
    for path in sorted(folder.glob("result*.json")):
        try:
            result = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged ({error}): remove it and test again") from error
        if "combined" in result and path.stat().st_mtime >= since:
            result["config"] = {k: v for k, v in result["config"].items() if k not in _PLACES}
            result["checkpoints"] = [_short(Path(file)) for file in result["checkpoints"]]
            found[path.name] = result
    return found


def _short(path: Path) -> str:
    """runs/NAME/checkpoints/last.pt -> NAME/last.pt."""
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return f"{folder.name}/{path.name}"
