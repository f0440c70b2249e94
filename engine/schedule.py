"""When the learning rate switches (Sec. 3): a pure function of the validation errors so far."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.schema import ScheduleConfig


def learning_rate(
    schedule: "ScheduleConfig", val_errors: list[float], has_updates: Callable[[int], bool]
) -> float:
    """The rate of the epoch that follows `val_errors`, the top-1 errors (%) of all epochs so far.

    fixed: the i-th switch happens at the start of epoch switch_epochs[i] (epochs count from 0).
    plateau: an epoch is better when its error is at least `min_improvement` points below the best
    so far; after `patience` epochs in a row that are not better the next rate begins, and the
    count starts again. Epochs without an update (has_updates), as those of fewer images than a
    batch may be, do not count. The last rate stays until the end. The paper gives no rule; this is
    ours.
    """
    epoch = len(val_errors)
    if schedule.rule == "fixed":
        return schedule.rates[sum(epoch >= switch for switch in schedule.switch_epochs)]
    best, stale, level = float("inf"), 0, 0
    for number, error in enumerate(val_errors):
        if not has_updates(number):
            continue
        if error <= best - schedule.min_improvement:
            best, stale = error, 0
        else:
            stale += 1
        if stale >= schedule.patience:
            level, stale = min(level + 1, len(schedule.rates) - 1), 0
    return schedule.rates[level]
