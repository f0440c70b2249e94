"""Top-1 and top-5 errors as integer counts, divided once."""

from dataclasses import dataclass

import torch
from torch import Tensor


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the true one: int64 [B] for scores [B, K], labels [B].

    Classes of equal score come in the order of their index, so ties have one answer. A score that
    is not a number never counts as right: its rank is K.
    """
    true = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > true) | ((scores == true) & (classes < labels[:, None]))
    ranks = before.sum(1)
    return torch.where(scores.isfinite().all(1), ranks, scores.shape[1])


@dataclass(frozen=True)
class ErrorCounts:
    """Images seen and images wrong; adds up over batches and processes."""

    images: int = 0
    wrong_top1: int = 0
    wrong_top5: int = 0

    @staticmethod
    def of(scores: Tensor, labels: Tensor) -> "ErrorCounts":
        """Counts of a batch: scores [B, K], labels [B]."""
        ranks = label_ranks(scores, labels)
        return ErrorCounts(len(labels), int((ranks >= 1).sum()), int((ranks >= 5).sum()))

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(
            self.images + other.images,
            self.wrong_top1 + other.wrong_top1,
            self.wrong_top5 + other.wrong_top5,
        )

    @property
    def top1_error(self) -> float:
        """Percent."""
        return 100 * self.wrong_top1 / self.images

    @property
    def top5_error(self) -> float:
        """Percent."""
        return 100 * self.wrong_top5 / self.images
