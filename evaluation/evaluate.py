"""Tests one checkpoint: opens it with its images, and scores them at every scale."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from scipy.special import softmax
from torch import Tensor
from tqdm import tqdm

from common.errors import Stopped
from configs.schema import EvalConfig, TrainConfig
from configs.store import from_dict
from configs.validate import require
from data.draws import Ints, centre_batches, subset
from data.loading import load_whole
from data.sources.cache import OnProgress, no_report
from data.sources.index import ImageIndex, scan_folder
from engine.checkpoint import State, fingerprint, load_checkpoint
from engine.distributed import World
from engine.precision import set_precision
from engine.stopping import StopRequest
from evaluation.classifier import restore_network
from evaluation.pictures import open_pictures
from evaluation.predictions import (
    Floats,
    Predictions,
    hash_of_images,
    load_predictions,
    weighted_mean,
)
from evaluation.score_shards import ScoreShards
from evaluation.scorer import Scorer
from evaluation.submission import open_test_images
from evaluation.views import default_scales, full_image_scale, scale_weights

# The most batches of images that wait for others of their size: bounds memory.
_MAX_WAITING = 16


@dataclass
class NetworkScores:
    """The scores of all images by one network."""

    predictions: Predictions  # all scales combined
    by_scale: dict[int, Floats] = field(default_factory=dict)  # probabilities [N, K]; {}: unknown
    shards: list[ScoreShards] = field(default_factory=list)  # on disk until the result is written


@dataclass(frozen=True)
class OpenNetwork:
    """A checkpoint, and the images on which to test it."""

    path: Path
    weights: str  # their fingerprint
    state: State | None  # None: loaded again later, to hold one network of an ensemble at a time
    run: TrainConfig
    scales: list[int]
    root: str  # the data set
    index: ImageIndex
    indices: Ints  # of the images to score
    images: str  # the hash of these images

    @property
    def classes(self) -> list[str]:
        return self.index.classes


def open_network(
    path: Path, config: EvalConfig, on_progress: OnProgress
) -> OpenNetwork | Predictions:
    """A checkpoint with the images to score, or a file of saved predictions (.npz).

    Raises UserError if it cannot be scored.
    """
    if path.suffix == ".npz":
        return load_predictions(path)
    state = load_checkpoint(path)
    run = from_dict(state["config"], TrainConfig)
    crop, val_scale = run.data.crop, run.data.validation_scale
    scales = config.scales or default_scales(config.views, crop, val_scale)
    require(min(scales) >= crop, f"scale {min(scales)} is smaller than the views of {crop} pixels")
    root = config.data.root or run.data.root
    index = open_images(config, root, state["classes"], on_progress)
    indices = subset(len(index), config.subset)
    state.pop("optimizer", None)  # twice the size of the weights
    return OpenNetwork(
        path=path,
        weights=fingerprint(path),
        state=state if len(config.checkpoints) == 1 else None,
        run=run,
        scales=scales,
        root=root,
        index=index,
        indices=indices,
        images=hash_of_images(index, indices),
    )


def open_images(
    config: EvalConfig, root: str, classes: list[str], on_progress: OnProgress = no_report
) -> ImageIndex:
    """The images to test on: a split of the data set in `root`, or the user's own pictures.

    classes: those of the network. Raises UserError if there are no images, if the validation images
    have other classes, or if the test images cannot make a submission.
    """
    if config.images is not None:
        return open_pictures(config.images, classes)
    if config.split == "test":
        return open_test_images(root, classes, on_progress)
    return scan_folder(root, "val", classes, on_progress)


def score_network(
    network: OpenNetwork | Predictions, config: EvalConfig, stop: StopRequest, folder: Path
) -> NetworkScores:
    """Score all images at all scales, except those whose scores are already in `folder`.

    Raises Stopped if a signal asks for it; the scores so far of all processes are then in `folder`.
    """
    if isinstance(network, Predictions):
        return NetworkScores(network)
    scorer = _build_scorer(config, network, stop.world)
    index, indices = network.index, network.indices
    by_scale, all_shards = {}, []
    for scale in network.scales:
        key = _shards_key(network, config, scorer, scale)
        shards = ScoreShards(folder / key, len(indices), len(index.classes))
        score_images(scorer, index, shards, indices=indices, scale=scale, config=config, stop=stop)
        if stop.agreed():
            raise Stopped(f"stopped by a signal at scale {scale}, saved in {folder}")
        by_scale[scale] = shards.read()
        all_shards.append(shards)
    data = network.run.data
    weights = scale_weights(config.views, network.scales, data.crop, data.validation_scale)
    scores = weighted_mean(list(by_scale.values()), weights)
    if config.average == "logits":
        scores = softmax(scores, axis=1)
        by_scale = {scale: softmax(logits, axis=1) for scale, logits in by_scale.items()}
    predictions = Predictions(scores, index.labels[indices], index.classes, network.images)
    return NetworkScores(predictions, by_scale, all_shards)


def _build_scorer(config: EvalConfig, network: OpenNetwork, world: World) -> Scorer:
    run, state = network.run, network.state
    if state is None:
        changed = f"{network.path} was replaced by another while the first networks were tested"
        require(fingerprint(network.path) == network.weights, changed)
        state = load_checkpoint(network.path)
    precision = set_precision(config.precision or run.precision, world.device, fixed_shapes=False)
    if world.is_main and precision.is_emulated:
        print(f"precision={precision}", flush=True)
    return Scorer(
        network=restore_network(state, run).to(world.device).to(memory_format=torch.channels_last),
        mean=state["mean"].to(world.device),
        precision=precision,
        crop=run.data.crop,
        views=config.views,
        average=config.average,
        square=config.square,
        on_map=config.on_map,
        full_image_scale=full_image_scale(network.scales, run.data.validation_scale),
    )


def _shards_key(network: OpenNetwork, config: EvalConfig, scorer: Scorer, scale: int) -> str:
    """The folder name of the shards: a hash of everything that the scores depend on."""
    views = [scorer.views, scorer.average, scorer.square, scorer.on_map, scorer.full_image_scale]
    precision = [scorer.precision.name, config.data.on_error]
    text = json.dumps([network.weights, network.images, scale, *views, *precision])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def score_images(
    scorer: Scorer,
    index: ImageIndex,
    shards: ScoreShards,
    *,
    indices: Ints,
    scale: int,
    config: EvalConfig,
    stop: StopRequest,
) -> None:
    """Fill this process's shards with the scores of index[indices], resized to `scale`.

    Stops early if a signal asks for it. The scores so far are saved however it ends. They do not
    depend on which images share a batch.
    """
    pending = shards.pending(stop.world.rank, stop.world.size)
    if not len(pending):
        return
    draws = centre_batches(indices[pending], scale, config.batch_size)
    batches = load_whole(
        index, draws, loader=config.loader, on_error=config.data.on_error, on_event=print
    )
    bar = tqdm(total=len(pending), desc=f"scale {scale}", unit="img", disable=None)
    with closing(batches), bar:

        def readable_images() -> Iterator[tuple[int, Tensor]]:
            """The position and pixel values of each."""
            positions = iter(pending.tolist())
            for batch in batches:
                for image, replaced in zip(batch.images, batch.replaced.tolist(), strict=True):
                    position = next(positions)
                    if replaced:
                        shards.put(position, None)
                        bar.update()
                    else:
                        yield position, image

        try:
            for positions, images in batch_by_size(readable_images(), config.batch_size):
                stop.world.watch.alive(f"scale {scale}")
                scores = scorer.scores(images).numpy()
                for position, row in zip(positions, scores, strict=True):
                    shards.put(position, row)
                bar.update(len(positions))
                if stop.asked:
                    return
        finally:
            shards.keep()


def batch_by_size(
    images: Iterator[tuple[int, Tensor]], batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of up to `batch_size` images of one size: positions, and images [B, H, W, 3]."""
    waiting: dict[torch.Size, list[tuple[int, Tensor]]] = defaultdict(list)
    num_waiting = 0
    for position, image in images:
        group = waiting[image.shape]
        group.append((position, image))
        num_waiting += 1
        if len(group) == batch_size or num_waiting >= _MAX_WAITING * batch_size:
            largest = max(waiting, key=lambda shape: len(waiting[shape]))
            group = waiting.pop(largest)
            num_waiting -= len(group)
            yield _stack(group)
    yield from map(_stack, waiting.values())


def _stack(group: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
    positions, images = zip(*group, strict=True)
    return list(positions), torch.stack(images)
