"""Executes a view plan over a data set: class probabilities for every image at every scale."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.batch import Batch
from engine.precision import Precision
from evaluation.centre import class_probabilities
from evaluation.views import plan


@dataclass(frozen=True)
class Predictions:
    """Averaged softmax scores of N images at one scale, or of several scales combined."""

    scores: Tensor  # float32 [N, K], on the CPU
    labels: Tensor  # int64 [N]
    indices: Tensor  # int64 [N] places in the index


@dataclass(frozen=True)
class Viewer:
    """A network with the views it is tested on."""

    network: nn.Module
    mean: Tensor  # [crop, crop, 3] or [1, 1, 3]
    precision: Precision
    crop: int
    views: str
    square: bool

    def scores(self, images: list[Tensor]) -> Tensor:
        """float32 [B, K]: softmax scores averaged over each image's views, uint8 [h, w, 3] each."""
        crops = []
        for image in images:
            height, width, _ = image.shape
            for w in plan(self.views, height, width, self.crop, square=self.square):
                view = image[w.y : w.y + self.crop, w.x : w.x + self.crop]
                crops.append(view.flip(1) if w.flip else view)
        scores = class_probabilities(self.network, torch.stack(crops), self.mean, self.precision)
        return scores.unflatten(0, (len(images), -1)).mean(1).cpu()

    def predict(self, batches: Iterable[Batch], num_classes: int) -> Predictions:
        """Scores of all readable images of batches of whole images."""
        scores = [torch.empty(0, num_classes)]
        labels = [torch.empty(0, dtype=torch.int64)]
        indices = [torch.empty(0, dtype=torch.int64)]
        for batch in batches:
            assert isinstance(batch.images, list)
            own = ~batch.replaced
            scores.append(self.scores(batch.images)[own])
            labels.append(batch.labels[own])
            indices.append(batch.indices[own])
        return Predictions(torch.cat(scores), torch.cat(labels), torch.cat(indices))


def combine(parts: list[Predictions]) -> Predictions:
    """The mean of the scores of several scales of the same images, in the same order."""
    first = parts[0]
    assert all(torch.equal(part.indices, first.indices) for part in parts)
    scores = torch.stack([part.scores for part in parts]).mean(0)
    return Predictions(scores, first.labels, first.indices)
