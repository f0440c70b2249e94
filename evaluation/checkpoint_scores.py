"""One network of an evaluation: its scores at every scale, computed or resumed."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.schema import EvalConfig, TrainConfig
from configs.store import from_dict
from configs.validate import require
from data.draws import subset
from engine.checkpoint import load_checkpoint
from engine.distributed import World
from engine.precision import set_precision
from engine.stopping import Stopped, StopRequest
from evaluation.evaluate import score_images
from evaluation.images import open_images
from evaluation.predictions import (
    Floats,
    Predictions,
    image_list,
    load_predictions,
    weighted_mean,
)
from evaluation.score_shards import Parts
from evaluation.scorer import Viewer
from evaluation.views import default_scales, full_scale, scale_weights
from models.network import build_network


@dataclass
class Member:
    """Probabilities of a network's views; saved predictions know no single scales."""

    predictions: Predictions
    scales: dict[int, Floats] = field(default_factory=dict)  # probabilities [N, K]
    root: str | None = None  # the data set it was tested on


def open_member(path: Path, config: EvalConfig, stop: StopRequest, folder: Path) -> Member:
    """A checkpoint, evaluated, or a file of saved predictions (.npz)."""
    if path.suffix == ".npz":
        return Member(load_predictions(path))
    return evaluate_checkpoint(path, config, stop, folder)


def evaluate_checkpoint(path: Path, config: EvalConfig, stop: StopRequest, folder: Path) -> Member:
    """Score all images at all scales; what an earlier session left in `folder` is used.

    Raises Stopped, with all scores of all processes in `folder`, where a signal asks for it.
    """
    world = stop.world
    state = load_checkpoint(path)
    run = from_dict(state["config"], TrainConfig)
    scales = config.scales or default_scales(config.views, run.data.crop, run.data.validation_scale)
    require(
        min(scales) >= run.data.crop,
        f"scale {min(scales)} is smaller than the views of {run.data.crop} pixels",
    )
    root = config.data.root or run.data.root
    index = open_images(config, root, state["classes"], world.watch.alive)
    chosen = subset(len(index), config.subset)
    images = image_list(index, chosen)
    viewer = _build_viewer(config, state, run, scales, world)
    found = {}
    for scale in scales:
        key = _key(path, config, images, scale, viewer)
        parts = Parts(folder / key, len(chosen), len(index.classes))
        mine = parts.pending(world.rank, world.size)
        if len(mine):
            score_images(viewer, index, chosen, scale, parts, mine, config, print, stop)
        if stop.agreed():
            raise Stopped(f"stopped by a signal at scale {scale}, saved in {folder}")
        found[scale] = parts.read()
    weights = scale_weights(config.views, scales, run.data.crop, run.data.validation_scale)
    scores = weighted_mean(list(found.values()), [float(weight) for weight in weights])
    if config.average == "logits":
        scores, found = _softmax(scores), {s: _softmax(part) for s, part in found.items()}
    return Member(Predictions(scores, index.labels[chosen], index.classes, images), found, root)


def _build_viewer(
    config: EvalConfig, state: dict[str, Any], run: TrainConfig, scales: list[int], world: World
) -> Viewer:
    precision = set_precision(config.precision or run.precision, world.device)
    network = build_network(run.model, run.act, run.init, len(state["classes"]), seed=None)
    network.load_state_dict(state.pop("network"))  # of a large model: not to be kept twice
    network = network.to(world.device).to(memory_format=torch.channels_last)
    return Viewer(
        network,
        state["mean"].to(world.device),
        precision,
        run.data.crop,
        config.views,
        config.average,
        config.square,
        config.on_map,
        full_scale(scales, run.data.validation_scale),
    )


def _key(path: Path, config: EvalConfig, images: str, scale: int, viewer: Viewer) -> str:
    """Name of the folder of parts: changes with everything that the scores depend on."""
    stat = path.stat()
    facts = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, images, scale]
    how = [
        viewer.views,
        viewer.average,
        viewer.square,
        viewer.on_map,
        viewer.full_scale,
        viewer.precision.name,
    ]
    text = json.dumps([*facts, *how, config.data.on_error])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
