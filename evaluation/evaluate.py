"""Runs a viewer over a data set: images of equal size together, part by part."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from torch import Tensor
from tqdm import tqdm

from configs.schema import EvalConfig
from data.draws import Ints, centre_batches
from data.loading import load
from data.sources.index import ImageIndex
from engine.stopping import StopRequest
from evaluation.score_shards import Parts
from evaluation.scorer import Viewer

# Images waiting for others of their size, in batches: bounds memory.
_WAITING = 16


def score_images(
    viewer: Viewer,
    index: ImageIndex,
    chosen: Ints,
    scale: int,
    parts: Parts,
    mine: Ints,
    config: EvalConfig,
    on_event: Callable[[str], None],
    stop: StopRequest,
) -> None:
    """Fill `parts` with the scores of chosen[mine], resized to `scale`; told to stop, with some.

    Scores do not depend on which images are together in a batch.
    """
    draws = centre_batches(chosen[mine], scale, config.batch_size)
    batches = load(index, draws, None, config.loader, config.data.on_error, on_event)
    bar = tqdm(total=len(mine), desc=f"scale {scale}", unit="img", disable=None)
    with closing(batches), bar:

        def images() -> Iterator[tuple[int, Tensor]]:
            """Position and pixels of every readable image."""
            positions = iter(mine)
            for batch in batches:
                for image, replaced in zip(batch.images, batch.replaced.tolist(), strict=True):
                    position = int(next(positions))
                    if not replaced:
                        yield position, image
                        continue
                    parts.put(position, None)
                    bar.update()

        for positions, pixels in equal_sizes(images(), config.batch_size):
            stop.world.watch.alive(f"scale {scale}")
            scores = viewer.scores(pixels).numpy()
            for position, row in zip(positions, scores, strict=True):
                parts.put(position, row)
            bar.update(len(positions))
            if stop.asked:
                parts.keep()
                return


def equal_sizes(
    images: Iterator[tuple[int, Tensor]], batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of up to `batch_size` images of one size: their positions, and [B, H, W, 3]."""
    waiting: dict[torch.Size, list[tuple[int, Tensor]]] = defaultdict(list)
    count = 0
    for item in images:
        group = waiting[item[1].shape]
        group.append(item)
        count += 1
        if len(group) == batch_size or count >= _WAITING * batch_size:
            largest = max(waiting, key=lambda shape: len(waiting[shape]))
            group = waiting.pop(largest)
            count -= len(group)
            yield _together(group)
    for group in waiting.values():
        yield _together(group)


def _together(group: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
    return [position for position, _ in group], torch.stack([image for _, image in group])
