"""How long the rest of a run takes, and the picture of conv1's filters."""

import time

import pytest
import torch

from engine.log import duration
from engine.progress import Left, Pace, Plan, Progress
from models.learned import filter_grid
from tests.conftest import composed


def test_time_left_is_that_of_steps_validations_and_checkpoints() -> None:
    pace, left = Pace(), Left(steps=100, validations=3, checkpoints=4, steps_in_validation=10)
    assert pace.seconds_left(left) is None
    pace.steps.extend([2.0, 2.0, 90.0, 2.0, 2.0])  # a disk that stalled once
    assert pace.seconds_left(left) == pytest.approx(2 * 100 + 3 * 10 * 2)
    pace.validation = 7.0
    pace.saved(5.0)
    assert pace.seconds_left(left) == pytest.approx(2 * 100 + 3 * 7 + 4 * 5)


def test_pace_counts_neither_the_first_step_nor_checkpoints() -> None:
    pace = Pace()
    time.sleep(0.2)  # compiling
    pace.stepped(1)
    pace.measure(1)
    assert not pace.steps  # nothing to go by yet
    for step in (2, 3, 4):
        time.sleep(0.02)
        pace.stepped(step)
    time.sleep(0.2)
    pace.saved(0.2)
    pace.measure(4)
    (seconds,) = pace.steps
    assert 0.02 <= seconds < 0.06


def left(step: int, epochs_done: int, *overrides: str) -> Left:
    """For a run that trains on 100 images and validates on 10."""
    config = composed("batch_size=16", "epochs=3", "checkpoint.every_steps=5", *overrides)
    progress = Progress(step=step, val_errors=[50.0] * epochs_done)
    return Plan(config, train_images=100, val_images=10).left(progress)


def test_what_is_left() -> None:
    """Epochs end at steps 7, 13, 19."""
    assert left(0, 0) == Left(19, 3, 6 + 3, 10 / 16)
    assert left(7, 0) == Left(12, 3, 6 + 2, 10 / 16)  # about to validate
    assert left(7, 1).validations == 2
    assert left(19, 2) == Left(0, 1, 2, 10 / 16)
    assert left(0, 0, "max_steps=10").validations == 2  # the second epoch is cut
    assert left(6, 0, "val_every=2").validations == 3 + 6  # 8, 10 ... 18
    assert left(4, 0, "skip_steps=[[3,6],[18,30]]").steps == 19 - 4 - 2 - 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (47 * 3600 + 3540, "47 h 59 min"),
        (49 * 3600, "2 d 1 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_filters_stand_in_a_grid_and_zero_is_grey() -> None:
    filters = torch.zeros(5, 3, 2, 2)
    filters[0, 0, 0, 1] = 0.5  # red, top right
    filters[4, 2, 1, 0] = -3.0
    grid = filter_grid(filters)
    assert grid.shape == (2 * 3 + 1, 3 * 3 + 1, 3)
    assert grid[1, 2].tolist() == [255, 128, 128]
    assert grid[5, 4].tolist() == [128, 128, 0]
    assert grid[1, 4].tolist() == [128, 128, 128]
    assert (grid[0] == 255).all()  # a white line
    assert (grid[4:, 7:] == 255).all()  # no sixth filter
