"""Top-1 and top-5 errors: integer counts, divided once; their intervals; errors class by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from common.errors import UserError
from data.draws import Ints
from evaluation.predictions import Floats, readable

_NUM_WORST = 10  # classes that a summary names


class Errors(TypedDict):
    """Errors in a result file, percent."""

    top1_error: float
    top5_error: float
    top1_interval: list[float]
    top5_interval: list[float]


# A class in a result file; its name is that of its folder.
ClassRow = TypedDict(
    "ClassRow",
    {
        "class": str,
        "words": NotRequired[str],
        "images": int,
        "top1_error": float,
        "top5_error": float,
    },
)


def label_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the true one: int64 [B] for scores [B, K], labels [B].

    Classes of equal score come in the order of their index, so ties have one answer. A score that
    is not finite never counts as right: its rank is K.
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

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 %, percent."""
        return interval(self.wrong_top1, self.images)

    @property
    def top5_interval(self) -> tuple[float, float]:
        """95 %, percent."""
        return interval(self.wrong_top5, self.images)

    def as_dict(self) -> Errors:
        """The errors for a result file."""
        return {
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "top1_interval": list(self.top1_interval),
            "top5_interval": list(self.top5_interval),
        }


def interval(wrong: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an error rate, percent."""
    from scipy.stats import binomtest  # takes a second to import, and training does without

    ends = binomtest(wrong, images).proportion_ci(confidence_level=0.95, method="wilson")
    return 100 * float(ends.low), 100 * float(ends.high)


def count_errors(scores: Floats, labels: Ints) -> ErrorCounts:
    """Errors on the readable images: scores [N, K], labels [N]. UserError if there are none."""
    rows = readable(scores)
    if not rows.any():
        raise UserError("no image could be evaluated")
    return ErrorCounts.of(torch.from_numpy(scores[rows]), torch.from_numpy(labels[rows]))


@dataclass(frozen=True)
class ClassErrors:
    """Errors on the images of one class."""

    name: str
    words: str | None  # what people call it; None: not known
    counts: ErrorCounts

    def as_dict(self) -> ClassRow:
        """For a result file."""
        row: ClassRow = {
            "class": self.name,
            "words": self.words or "",
            "images": self.counts.images,
            "top1_error": self.counts.top1_error,
            "top5_error": self.counts.top5_error,
        }
        if self.words is None:
            del row["words"]
        return row


def per_class(
    scores: Floats, labels: Ints, classes: Sequence[str], words: Sequence[str] | None = None
) -> list[ClassErrors]:
    """Errors on each class that has readable images (Figs. 6, 7); words: what people call them."""
    rows, errors = readable(scores), []
    for label, name in enumerate(classes):
        own = rows & (labels == label)
        if own.any():
            counts = count_errors(scores[own], labels[own])
            errors.append(ClassErrors(name, words[label] if words else None, counts))
    return errors


@dataclass(frozen=True)
class ClassSummary:
    """How many classes have no error, and which have the most."""

    classes: int
    zero_top1: int
    zero_top5: int
    worst: list[ClassErrors]  # the worst first

    @staticmethod
    def of(errors: Sequence[ClassErrors]) -> "ClassSummary":
        """The summary of all classes, by top-5, then by top-1 error."""
        worst = sorted(errors, key=lambda each: (-each.counts.top5_error, -each.counts.top1_error))
        return ClassSummary(
            classes=len(errors),
            zero_top1=sum(each.counts.wrong_top1 == 0 for each in errors),
            zero_top5=sum(each.counts.wrong_top5 == 0 for each in errors),
            worst=worst[:_NUM_WORST],
        )

    def as_dict(self) -> dict[str, object]:
        """For a result file."""
        return {**vars(self), "worst": [each.as_dict() for each in self.worst]}

    def as_text(self) -> str:
        """For a person."""
        lines = [
            f"classes without a top-5 error: {self.zero_top5} of {self.classes}; "
            f"without a top-1 error: {self.zero_top1}",
            "worst classes (top-5, top-1 error %):",
        ]
        for each in self.worst:
            errors = f"{each.counts.top5_error:6.2f} {each.counts.top1_error:6.2f}"
            lines.append(f"  {errors}  {each.words or each.name}")
        return "\n".join(lines)
