"""Errors class by class: which have none, and which are the worst (Fig. 6)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from data.draws import Ints
from evaluation.metrics import ErrorCounts
from evaluation.predictions import Floats

WORST = 10  # classes that a summary names


def per_class(
    scores: Floats, labels: Ints, classes: Sequence[str], words: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Errors (percent) of each class that has readable images; words: what people call them."""
    readable = np.isfinite(scores).all(axis=1)
    rows = []
    for label, name in enumerate(classes):
        own = readable & (labels == label)
        if not own.any():
            continue
        counts = ErrorCounts.of(torch.from_numpy(scores[own]), torch.from_numpy(labels[own]))
        errors = {"top1_error": counts.top1_error, "top5_error": counts.top5_error}
        known = {} if words is None else {"words": words[label]}
        rows.append({"class": name, **known, "images": counts.images, **errors})
    return rows


def class_summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of rows of `per_class`: classes without an error, and the WORST, the highest first."""
    worst = sorted(rows, key=lambda row: (-row["top5_error"], -row["top1_error"]))
    return {
        "classes": len(rows),
        "zero_top1": sum(row["top1_error"] == 0 for row in rows),
        "zero_top5": sum(row["top5_error"] == 0 for row in rows),
        "worst": list(worst[:WORST]),
    }


def class_lines(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    lines = [
        f"classes without a top-5 error: {summary['zero_top5']} of {summary['classes']}; "
        f"without a top-1 error: {summary['zero_top1']}",
        "worst classes (top-5, top-1 error %):",
    ]
    for row in summary["worst"]:
        name = row.get("words") or row["class"]
        lines.append(f"  {row['top5_error']:6.2f} {row['top1_error']:6.2f}  {name}")
    return "\n".join(lines)
