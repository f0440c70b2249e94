"""result.json and the table printed beside it."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from common.files import write_atomically
from common.machine import commit
from configs.schema import EvalConfig
from configs.store import to_dict
from data.draws import Ints
from evaluation.checkpoint_scores import Member
from evaluation.classes import class_summary, per_class
from evaluation.metrics import ErrorCounts
from evaluation.predictions import Floats, Predictions, weighted_mean


def count_errors(scores: Floats, labels: Ints) -> ErrorCounts:
    """Errors over the readable images; labels [N], scores [N, K]. UserError if there are none."""
    readable = np.isfinite(scores).all(axis=1)
    if not readable.any():
        raise UserError("no image could be evaluated")
    return ErrorCounts.of(torch.from_numpy(scores[readable]), torch.from_numpy(labels[readable]))


def interval(wrong: int, images: int) -> tuple[float, float]:
    """95 % interval of an error rate, percent: Wilson's for a binomial count."""
    z, p = 1.959964, wrong / images
    centre = p + z * z / (2 * images)
    spread = z * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
    low, high = [(centre + sign * spread) / (1 + z * z / images) for sign in (-1, 1)]
    return 100 * max(0.0, low), 100 * min(1.0, high)


def errors_entry(counts: ErrorCounts) -> dict[str, Any]:
    """The error rates of a result file, percent, with their 95 % intervals."""
    return {
        "top1_error": counts.top1_error,
        "top5_error": counts.top5_error,
        "top1_interval": list(interval(counts.wrong_top1, counts.images)),
        "top5_interval": list(interval(counts.wrong_top5, counts.images)),
    }


def count_all(
    members: dict[str, Member], combined: Predictions, weights: list[float] | None
) -> dict[str, ErrorCounts]:
    """Errors at every scale that all networks were tested at, and combined."""
    scales = [set(member.scales) for member in members.values()]
    common = [s for s in next(iter(members.values())).scales if all(s in own for own in scales)]
    rows = {}
    for scale in common:
        parts = [member.scales[scale] for member in members.values()]
        scores = weighted_mean(parts, weights or [1.0] * len(parts))
        rows[str(scale)] = count_errors(scores, combined.labels)
    return {**rows, "combined": count_errors(combined.scores, combined.labels)}


def result_path(config: EvalConfig, paths: list[Path]) -> Path:
    """Where the result goes: out=, or a name that tells what was done, in the run's folder."""
    if config.out:
        return Path(config.out)
    first = paths[0]
    folder = first.parent.parent if first.parent.name == "checkpoints" else first.parent
    how = [config.views, *(["square"] if config.square else []), *map(str, config.scales or [])]
    how += ["on-map"] if config.on_map else []
    how += ["pictures", _first_name(config.images)] if config.images else []
    how += ["test"] if config.split == "test" else []
    how += ["logits"] if config.average == "logits" else []
    how += [f"of-{config.subset}"] if config.subset else []
    how += [f"and-{len(paths) - 1}-more"] if len(paths) > 1 else []
    return folder / ("-".join(["result", first.stem, *how]) + ".json")


def _first_name(images: str | list[str]) -> str:
    """So that the results of some pictures do not replace those of others."""
    first = images if isinstance(images, str) else str(images[0])
    return Path(os.path.abspath(first)).stem[:40]


def result_of(
    config: EvalConfig,
    files: list[str],
    errors: dict[str, ErrorCounts],
    combined: Predictions,
    words: list[str] | None = None,
) -> dict[str, Any]:
    """The content of a result file; words: what people call the classes."""
    rows = per_class(combined.scores, combined.labels, combined.classes, words)
    scales = [(int(scale), counts) for scale, counts in errors.items() if scale.isdigit()]
    return {
        "views": config.views,
        "scales": [{"scale": scale, **errors_entry(counts)} for scale, counts in scales],
        "combined": errors_entry(errors["combined"]),
        "images": errors["combined"].images,
        "checkpoints": files,
        "classes": class_summary(rows),
        "per_class": rows,
        "commit": commit(),
        "config": to_dict(config),
    }


def error_table(rows: dict[str, ErrorCounts], num_classes: int) -> str:
    """Scale by scale, top-1 and top-5 error with 95 % intervals, and the level of guessing."""
    if len(rows) == 2:  # one scale: combining it with nothing tells nothing new
        rows = {name: counts for name, counts in rows.items() if name != "combined"}
    lines = [f"{'scale':<10}{'top-1 error %':>26}{'top-5 error %':>26}{'images':>9}"]
    for name, counts in rows.items():
        cells = []
        for error, wrong in (
            (counts.top1_error, counts.wrong_top1),
            (counts.top5_error, counts.wrong_top5),
        ):
            low, high = interval(wrong, counts.images)
            cells.append(f"{error:>10.2f} [{low:5.2f}, {high:5.2f}]")
        lines.append(f"{name:<10}{cells[0]:>26}{cells[1]:>26}{counts.images:>9}")
    chance = [100 * (1 - min(k, num_classes) / num_classes) for k in (1, 5)]
    guess = [f"{error:>10.2f}{'':15}" for error in chance]
    lines.append(f"{'(chance)':<10}{guess[0]:>26}{guess[1]:>26}".rstrip())
    return "\n".join(lines)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result file atomically; raises UserError where it cannot be written."""
    text = json.dumps(result, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
