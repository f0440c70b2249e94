"""What an evaluation ends with: errors, a file to submit, or guesses about single pictures."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError, refusing
from configs.schema import EvalConfig
from configs.store import to_dict
from evaluation.checkpoint_scores import Member
from evaluation.classes import class_lines
from evaluation.images import class_words, open_images
from evaluation.own_images import Guesses, as_json, guess, guess_table
from evaluation.pictures import Picture, draw_pictures
from evaluation.predictions import Predictions, image_list
from evaluation.result import count_all, error_table, result_of
from evaluation.submission import submission, write_submission

_SHOWN = 24  # pictures in a figure
_FIGURE, _SUBMISSION = ".png", ".txt"  # beside the result file


@dataclass
class Outcome:
    """What is printed, the content of the result file, and what else there is to write."""

    text: str
    result: dict[str, Any]
    submission: str | None = None
    title: str = ""
    pictures: list[Picture] = field(default_factory=list)

    def write_others(self, result_file: Path) -> list[Path]:
        """Write what goes beside the result file; raises UserError where it cannot be written."""
        written = []
        if self.submission is not None:
            written.append(result_file.with_suffix(_SUBMISSION))
            write_submission(written[-1], self.submission)
        if self.pictures:
            written.append(result_file.with_suffix(_FIGURE))
            with refusing(OSError, what=f"could not write {written[-1]}"):
                draw_pictures(self.pictures, written[-1], self.title)
        return written


def refuse_overwriting(config: EvalConfig, out: Path) -> None:
    """Raises UserError if the results would replace a file that is not such a result itself.

    Of images=cat.png out=cat.json, the figure would be written into the place of the image.
    """
    earlier: dict[str, Any] = {}
    with suppress(OSError, ValueError, AttributeError):
        earlier = dict(json.loads(out.read_bytes()).get("config") or {})
    named, split = earlier.get("images") is not None, earlier.get("split")
    others = []
    if config.images is not None:
        others = [] if named else [out.with_suffix(_FIGURE)]
    elif config.split == "test":
        others = [] if split == "test" and not named else [out.with_suffix(_SUBMISSION)]
    for path in ([] if earlier else [out]) + others:
        if os.path.lexists(path):
            raise UserError(
                f"{path} is there already, and is not what eval.py wrote for such a command: give "
                "out=FILE.json for results of another name"
            )


def outcome(config: EvalConfig, members: dict[str, Member], combined: Predictions) -> Outcome:
    """What the combined predictions say. Raises UserError where they cannot say it."""
    known = (member.root for member in members.values() if member.root is not None)
    root = next(known, config.data.root)  # saved predictions know none
    if config.images is None and config.split == "val":
        errors = count_all(members, combined, config.weights)
        words = class_words(root, combined.classes) if root else None
        result = result_of(config, list(members), errors, combined, words)
        table = error_table(errors, len(combined.classes))
        return Outcome(f"{table}\n{class_lines(result['classes'])}", result)
    if root is None:
        raise UserError("saved predictions do not know their data set: type data.root=... of it")
    index = open_images(config, root, combined.classes)
    if image_list(index, np.arange(len(index))) != combined.images:
        raise UserError(f"{next(iter(members))} holds predictions of other images than these")
    facts = {"views": config.views, "images": len(combined.scores), "checkpoints": list(members)}
    if config.images is None:
        lines = submission(combined, root)
        result = {**facts, "config": to_dict(config)}
        text = f"{len(combined.scores)} test images: five classes for each, as ILSVRC2012_ID"
        return Outcome(text, result, submission=lines)
    found = guess(combined, index, class_words(root, combined.classes))
    result = {**facts, "images": len(found), "pictures": as_json(found), "config": to_dict(config)}
    title = f"Five most probable classes, {', '.join(members)}, views={config.views}"
    if len(found) > _SHOWN:
        title += f" (the first {_SHOWN} of {len(found)} pictures)"
    shown = [_picture(one) for one in found[:_SHOWN]]
    return Outcome(guess_table(found), result, title=title, pictures=shown)


def _picture(one: Guesses) -> Picture:
    guesses = list(zip(one.words, one.probabilities, strict=True))
    return Picture(Path(one.image).read_bytes(), one.truth_words, guesses)
