"""Divergence: how it is noticed, and what to type to get past it.

Resuming is deterministic, so a run whose loss became nan would diverge again. We get past it as
PaLM did (arXiv 2204.02311, Sec. 5.1): resume from a checkpoint before the loss rose, and skip the
updates of the steps that led there (`skip_steps`). All other batches stay the same.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from common.errors import UserError

RECENT = 100  # steps with whose losses a new one is compared


def rises(loss: float, recent: Sequence[float]) -> bool:
    """Whether a loss is far above the median of the losses before it."""
    return len(recent) > 0 and loss > 1.5 * median(recent) + 1


def refuse_other_skips(
    step: int, old: Sequence[Sequence[int]], new: Sequence[Sequence[int]]
) -> None:
    """Raises UserError if skip_steps has changed for steps that are done."""
    before, after = ([list(s) for s in spans if s[0] <= step] for spans in (old, new))
    if before != after:
        raise UserError(
            f"steps up to {step} are done, with skip_steps={before}: keep these spans, and add "
            "only spans of later steps"
        )


def way_on(folder: Path, step: int, rose_at: int | None, spans: Sequence[Sequence[int]]) -> str:
    """What to type after the loss became nan or infinite at `step`.

    folder: of the checkpoints. rose_at: the step at which the loss rose far above its median, if it
    did; later checkpoints are unsound. spans: skip_steps so far.
    """
    otherwise = (
        "start a new run, name=..., with a smaller clip_norm, smaller schedule.rates, or "
        "precision=fp32"
    )
    last = folder / "last.pt"
    paths = [last, folder / "previous.pt", *folder.glob("epoch-*.pt")]
    steps = {path: _step(path) for path in paths}
    sound = [path for path in paths if 0 <= steps[path] < (rose_at or step)]
    if not sound:
        return f"there is no checkpoint from before that: {otherwise}"
    path = max(sound, key=lambda path: steps[path])
    done = steps[path]
    copy = "" if path == last else f"`cp {path} {last}`, then "
    all_spans = [list(span) for span in spans if span[0] <= done] + [[done + 1, step]]
    value = str(all_spans).replace(" ", "")
    return (
        f"the last good checkpoint is {path}, of step {done}. To go on from it without the updates "
        f'that led here: {copy}the same command with "skip_steps={value}". If it diverges again, '
        f"{otherwise}"
    )


def _step(path: Path) -> int:
    """Steps done in a checkpoint; -1 if it does not exist or cannot be read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(state["progress"]["step"])
    except Exception:  # torch raises many kinds on a damaged file
        return -1


def learns_nothing(recent: Sequence[float], num_classes: int) -> bool:
    """Whether the losses of RECENT steps are no lower than ln K, the loss of guessing."""
    return len(recent) == RECENT and median(recent) > math.log(num_classes) - 0.01
