"""result.json and the table printed beside it."""

import json
from pathlib import Path
from typing import Any

from engine.checkpoint import write_atomically
from engine.distributed import World
from evaluation.centre import sum_errors
from evaluation.errors import ErrorCounts
from evaluation.evaluate import Predictions


def count_errors(predictions: Predictions, world: World) -> ErrorCounts:
    """Errors over all processes' predictions."""
    return sum_errors(ErrorCounts.of(predictions.scores, predictions.labels), world)


def errors_entry(counts: ErrorCounts) -> dict[str, float]:
    """The two error rates of a result file, percent."""
    return {"top1_error": counts.top1_error, "top5_error": counts.top5_error}


def error_table(rows: dict[str, ErrorCounts], num_classes: int) -> str:
    """Scale by scale, top-1 and top-5 error, with the level of guessing below."""
    lines = [f"{'scale':<14}{'top-1 error %':>14}{'top-5 error %':>14}{'images':>10}"]
    for name, counts in rows.items():
        lines.append(
            f"{name:<14}{counts.top1_error:>14.2f}{counts.top5_error:>14.2f}{counts.images:>10}"
        )
    chance = [100 * (1 - min(k, num_classes) / num_classes) for k in (1, 5)]
    lines.append(f"{'(chance)':<14}{chance[0]:>14.2f}{chance[1]:>14.2f}")
    return "\n".join(lines)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result file atomically; raises UserError where it cannot be written."""
    text = json.dumps(result, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
