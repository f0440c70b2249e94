"""Top-1 and top-5 errors as counts that are divided once, their intervals, errors per class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from common.errors import UserError
from data.draws import Ints
from evaluation.predictions import Floats, readable

_NUM_WORST = 10  # classes in a summary


class Errors(TypedDict):
    """Errors in a result file, percent."""

    top1_error: float
    top5_error: float
    top1_interval: list[float]
    top5_interval: list[float]


# A class in a result file; "class" is the name of its folder.
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
    """The number of classes ranked above the true one: int64 [B] for scores [B, K], labels [B].

    Ties go to the lower class index. A row with a score that is not finite is never right: its rank
    is K.
    """
    true_scores = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > true_scores) | ((scores == true_scores) & (classes < labels[:, None]))
    ranks = before.sum(1)
    return torch.where(scores.isfinite().all(1), ranks, scores.shape[1])


@dataclass(frozen=True)
class ErrorCounts:
    """Images and errors among them; counts of batches and processes can be added."""

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

    def as_dict(self) -> Errors:
        """The errors for a result file."""
        return {
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "top1_interval": list(interval(self.wrong_top1, self.images)),
            "top5_interval": list(interval(self.wrong_top5, self.images)),
        }


def interval(wrong: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an error rate, percent."""
    from scipy.stats import binomtest  # takes a second, and training does not need it

    ends = binomtest(wrong, images).proportion_ci(confidence_level=0.95, method="wilson")
    return 100 * float(ends.low), 100 * float(ends.high)


def count_errors(scores: Floats, labels: Ints) -> ErrorCounts:
    """Errors on the readable images: scores [N, K], labels [N]; raises UserError without any."""
    rows = readable(scores)
    if not rows.any():
        raise UserError("no image could be evaluated")
    return ErrorCounts.of(torch.from_numpy(scores[rows]), torch.from_numpy(labels[rows]))


@dataclass(frozen=True)
class ClassErrors:
    """Errors on the images of one class."""

    name: str
    words: str | None  # its English name; None: not known
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
    """Errors on each class that has readable images (Figs. 6, 7); words: the English names."""
    is_readable, errors = readable(scores), []
    for label, name in enumerate(classes):
        rows = is_readable & (labels == label)
        if rows.any():
            counts = count_errors(scores[rows], labels[rows])
            errors.append(ClassErrors(name, words[label] if words else None, counts))
    return errors


@dataclass(frozen=True)
class ClassSummary:
    """The numbers of classes without an error, and the classes with the most."""

    classes: int
    zero_top1: int
    zero_top5: int
    worst: list[ClassErrors]  # worst first

    @staticmethod
    def of(errors: Sequence[ClassErrors]) -> "ClassSummary":
        """The summary of all classes, ranked by top-5, then by top-1 error."""
        worst = sorted(errors, key=lambda row: (-row.counts.top5_error, -row.counts.top1_error))
        return ClassSummary(
            classes=len(errors),
            zero_top1=sum(row.counts.wrong_top1 == 0 for row in errors),
            zero_top5=sum(row.counts.wrong_top5 == 0 for row in errors),
            worst=worst[:_NUM_WORST],
        )

    def as_dict(self) -> dict[str, object]:
        """For a result file."""
        return {**vars(self), "worst": [row.as_dict() for row in self.worst]}

    def as_text(self) -> str:
        """The summary to be printed."""
        lines = [
            f"classes without a top-5 error: {self.zero_top5} of {self.classes}; "
            f"without a top-1 error: {self.zero_top1}",
            "worst classes (top-5, top-1 error %):",
        ]
        for row in self.worst:
            errors = f"{row.counts.top5_error:6.2f} {row.counts.top1_error:6.2f}"
            lines.append(f"  {errors}  {row.words or row.name}")
        return "\n".join(lines)
