"""Divergence: noticed early, reported with what to type, and bypassed.

Resuming is deterministic, so a run whose loss became nan would diverge again. The way past it is
PaLM's (arXiv 2204.02311, Sec. 5.1): resume from a checkpoint before the rise, and skip the updates
of the steps that led there (`skip_steps`). All other batches stay the same.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from common.errors import UserError

RECENT = 100  # steps whose losses a new one is compared with


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
    did: checkpoints written since then are unsound. spans: skip_steps so far.
    """
    otherwise = (
        "start a new run, name=..., with a smaller clip_norm, smaller schedule.rates, or "
        "precision=fp32"
    )
    sound = [(done, path) for path in _newest_first(folder) if (done := _step(path)) is not None]
    sound = [(done, path) for done, path in sound if done < (rose_at or step)]
    if not sound:
        return f"there is no checkpoint from before that: {otherwise}"
    done, path = max(sound, key=lambda pair: pair[0])
    copy = "" if path.name == "last.pt" else f"`cp {path} {folder / 'last.pt'}`, then "
    several = [list(span) for span in spans if span[0] <= done] + [[done + 1, step]]
    keys = str(several).replace(" ", "")
    return (
        f"the last good checkpoint is {path}, of step {done}. To go on from it without the updates "
        f'that led here: {copy}the same command with "skip_steps={keys}". If it diverges again, '
        f"{otherwise}"
    )


def _newest_first(folder: Path) -> list[Path]:
    names = ["last.pt", "previous.pt"]
    kept = sorted(folder.glob("epoch-*.pt"), reverse=True)
    return [path for path in [*(folder / name for name in names), *kept] if path.is_file()]


def _step(path: Path) -> int | None:
    """Steps done in a checkpoint; None if it cannot be read."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(state["progress"]["step"])
    except Exception:  # torch raises many kinds on a damaged file
        return None


def learns_nothing(recent: Sequence[float], num_classes: int) -> bool:
    """Whether the losses of RECENT steps are no better than that of guessing, ln K."""
    return len(recent) == RECENT and median(recent) > math.log(num_classes) - 0.01
