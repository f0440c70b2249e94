"""Validation during training: errors on centre crops, as in Figs. 2 and 3."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from common.errors import UserError
from data.loading import Batch
from data.normalise import network_input
from engine.distributed import World
from engine.precision import Precision
from evaluation.metrics import ErrorCounts


@torch.inference_mode()
def class_probabilities(
    network: nn.Module, images: Tensor, mean: Tensor, precision: Precision
) -> Tensor:
    """Probabilities float32 [B, K], on the device, for uint8 crops [B, H, W, 3]."""
    images = images.to(precision.device, non_blocking=True)
    with precision.autocast():
        logits = network(network_input(images, mean))
    return logits.float().softmax(1)


def centre_errors(
    network: nn.Module,
    batches: Iterable[Batch],
    mean: Tensor,
    *,
    precision: Precision,
    world: World,
    num_images: int,
) -> ErrorCounts:
    """Errors on the centre crops of all processes; each readable image counts once.

    num_images: images in the batches of all processes, readable or not. Raises UserError if none is
    readable.
    """
    total, seen = ErrorCounts(), 0
    for batch in batches:
        world.watch.alive("a validation")
        seen += len(batch.labels)
        scores = class_probabilities(network, batch.images, mean, precision).cpu()
        total += ErrorCounts.of(scores[~batch.replaced], batch.labels[~batch.replaced])
    counts = torch.tensor([total.images, total.wrong_top1, total.wrong_top5, seen])
    images, wrong_top1, wrong_top5, seen = world.sum(counts).tolist()
    assert seen == num_images, f"{seen} images were seen in a validation of {num_images}"
    if not images:
        raise UserError("no image could be evaluated")
    return ErrorCounts(images, wrong_top1, wrong_top5)
