"""The result file of an evaluation, its name, and the table of errors that is printed."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import methodcaller
from pathlib import Path
from typing import Any, TypedDict

from common.errors import UserError, refusing
from common.files import try_to_write, write_atomically
from common.machine import commit
from configs.schema import EvalConfig
from configs.store import PlainConfig, to_dict
from evaluation.evaluate import NetworkScores
from evaluation.metrics import (
    ClassRow,
    ClassSummary,
    ErrorCounts,
    Errors,
    count_errors,
    interval,
    per_class,
)
from evaluation.predictions import Predictions, load_predictions, weighted_mean


class ScaleErrors(Errors):
    """Errors at one scale."""

    scale: int  # shorter side, pixels


class Result(TypedDict):
    """The content of a result file with errors."""

    views: str
    scales: list[ScaleErrors]  # []: combined from saved predictions
    combined: Errors
    images: int
    checkpoints: list[str]
    classes: dict[str, object]  # ClassSummary
    per_class: list[ClassRow]
    commit: str | None
    config: PlainConfig  # of eval.py


def result_path(config: EvalConfig, paths: list[Path]) -> Path:
    """The result file: out=, or a file in the run's folder whose name says what was tested.

    Results of other images, networks, weights or precisions have other names.
    """
    if config.out:
        return Path(config.out)
    first, root = paths[0], config.data.root
    folder = first.parent.parent if first.parent.name == "checkpoints" else first.parent
    images = config.images if isinstance(config.images, list) else [config.images or ""]
    words = ["result", first.stem if first.suffix == ".pt" else first.name, config.views]
    words += ["square"] if config.square else []
    words += map(str, config.scales or [])
    words += ["on-map"] if config.on_map else []
    words += ["pictures", _short_name(images[0])] if config.images else []
    words += ["on", _short_name(root)] if root else []
    words += ["test"] if config.split == "test" else []
    words += ["logits"] if config.average == "logits" else []
    words += [config.precision] if config.precision else []
    words += [f"of-{config.subset}"] if config.subset else []
    words += [f"and-{len(paths) - 1}-more"] if len(paths) > 1 else []
    words += ["weighted"] if config.weights else []
    if config.images or root or len(paths) > 1:  # which the words do not tell apart
        files = [os.path.abspath(path) for path in (*images, root or "", *paths[1:])]
        text = json.dumps([files, config.weights])
        words.append(hashlib.sha256(text.encode()).hexdigest()[:6])
    return folder / f"{'-'.join(words)}.json"


def _short_name(path: str) -> str:
    """The name of a file or folder, short enough to be part of a file name."""
    return Path(os.path.abspath(path)).stem[:20]


def attachment_suffix(images: Any, split: str | None) -> str | None:
    """The suffix of the file beside the result file: a figure's, a submission's, or None."""
    if images is not None:
        return ".png"
    return ".txt" if split == "test" else None


def check_outputs(config: EvalConfig, out: Path) -> None:
    """Raise UserError if a file cannot be written, or would replace anything but such a result.

    With images=cat.png out=cat.json, for example, the figure would replace the image.
    """
    earlier: PlainConfig = {}
    with suppress(OSError, ValueError, AttributeError):
        earlier = dict(json.loads(out.read_bytes()).get("config") or {})
    foreign = [] if earlier else [out]
    suffix = attachment_suffix(config.images, config.split)
    if suffix and suffix != attachment_suffix(earlier.get("images"), earlier.get("split")):
        foreign.append(out.with_suffix(suffix))
    for path in foreign:
        if os.path.lexists(path):
            raise UserError(
                f"{path} already exists, and no such command of eval.py wrote it: give "
                "out=FILE.json to write another file"
            )
    with refusing(OSError, what=f"cannot write {out}", also="give out=FILE.json elsewhere"):
        try_to_write(out)
    if config.save_predictions:
        _check_predictions(Path(config.save_predictions), config.checkpoints)


def _check_predictions(path: Path, networks: list[str]) -> None:
    """The same for the file of save_predictions=."""
    if os.path.abspath(path) in map(os.path.abspath, networks):
        raise UserError(f"save_predictions={path} would replace one of the networks")
    if os.path.lexists(path):
        with refusing(UserError, also=f"save_predictions={path} would replace it"):
            load_predictions(path)
    with refusing(OSError, what=f"cannot write save_predictions={path}"):
        try_to_write(path)


@dataclass(frozen=True)
class Report:
    """The outcome of an evaluation."""

    text: str  # to be printed
    result: Mapping[str, object]  # the content of the result file
    attachment: bytes | None = None  # the content of the file beside it

    def write(self, path: Path, suffix: str | None) -> list[Path]:
        """Write the files atomically; raises UserError if one cannot be written."""
        files = {path: (json.dumps(self.result, indent=2) + "\n").encode()}
        if suffix and self.attachment is not None:
            files[path.with_suffix(suffix)] = self.attachment
        for name, content in files.items():
            write_atomically(name, methodcaller("write", content))
        return list(files)


def report_errors(
    config: EvalConfig,
    networks: dict[str, NetworkScores],
    combined: Predictions,
    *,
    words: list[str] | None,
) -> Report:
    """The errors at each scale and combined; words: the English names of the classes."""
    by_scale = _errors_by_scale(list(networks.values()), combined, config.weights)
    errors = count_errors(combined.scores, combined.labels)
    classes = per_class(combined.scores, combined.labels, combined.classes, words)
    summary = ClassSummary.of(classes)
    result: Result = {
        "views": config.views,
        "scales": [{"scale": scale, **counts.as_dict()} for scale, counts in by_scale.items()],
        "combined": errors.as_dict(),
        "images": errors.images,
        "checkpoints": list(networks),
        "classes": summary.as_dict(),
        "per_class": [row.as_dict() for row in classes],
        "commit": commit(),
        "config": to_dict(config),
    }
    rows = {str(scale): counts for scale, counts in by_scale.items()}
    if len(rows) != 1:  # combining a single scale changes nothing
        rows["combined"] = errors
    return Report(f"{error_table(rows, len(combined.classes))}\n{summary.as_text()}", result)


def _errors_by_scale(
    networks: list[NetworkScores], combined: Predictions, weights: list[float] | None
) -> dict[int, ErrorCounts]:
    """The errors of the combined networks, at each scale at which all were tested."""
    weights = weights or [1.0] * len(networks)
    errors = {}
    for scale in networks[0].by_scale:
        if all(scale in network.by_scale for network in networks):
            scores = weighted_mean([network.by_scale[scale] for network in networks], weights)
            errors[scale] = count_errors(scores, combined.labels)
    return errors


def error_table(rows: dict[str, ErrorCounts], num_classes: int) -> str:
    """Top-1 and top-5 errors with their 95 % intervals, and the errors of guessing."""
    lines = [f"{'scale':<10}{'top-1 error %':>26}{'top-5 error %':>26}{'images':>9}"]
    for name, counts in rows.items():
        line = f"{name:<10}"
        for wrong in (counts.wrong_top1, counts.wrong_top5):
            low, high = interval(wrong, counts.images)
            error = f"{100 * wrong / counts.images:.2f} [{low:5.2f}, {high:5.2f}]"
            line += f"{error:>26}"
        lines.append(f"{line}{counts.images:>9}")
    top1, top5 = (100 * (1 - min(k, num_classes) / num_classes) for k in (1, 5))
    lines.append(f"{'(chance)':<10}{top1:>11.2f}{top5:>26.2f}")
    return "\n".join(lines)
