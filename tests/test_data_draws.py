"""Randomness as data: its distributions, and that it depends on seed and position alone."""

from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from data.draws import (
    POSITION_ONE,
    Draws,
    centre_batches,
    epoch_order,
    subset,
    training_batches,
    training_draws,
)
from data.geometry import crop_offset, resized_size


def joined(batches: list[Draws]) -> dict[str, np.ndarray]:
    return {f.name: np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(Draws)}


def test_the_batch_size_and_the_first_step_do_not_matter() -> None:
    """The same 240 images of 2.4 epochs, cut into batches in three ways."""
    small = joined(list(training_batches(5, 0, 24, 10, 100, (256, 512))))
    large = joined(list(training_batches(5, 0, 3, 80, 100, (256, 512))))
    later = joined(list(training_batches(5, 12, 24, 10, 100, (256, 512))))
    for name, values in small.items():
        assert np.array_equal(values, large[name]), name
        assert np.array_equal(values[120:], later[name]), name
    other = training_draws(6, 0, 80, 100, (256, 512))
    assert not np.array_equal(other.keys, large["keys"][:80])


def test_the_processes_shares_make_up_the_batch() -> None:
    whole = training_draws(0, 7, 16, 1000, (256, 256))
    parts = joined([whole.rows(slice(4 * rank, 4 * rank + 4)) for rank in range(4)])
    assert all(np.array_equal(parts[f.name], getattr(whole, f.name)) for f in fields(Draws))


def test_every_epoch_is_a_full_permutation_of_its_own() -> None:
    images = joined(list(training_batches(1, 0, 30, 10, 100, (256, 512))))["indices"]
    epochs = images.reshape(3, 100)
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(epochs[2], epoch_order(1, 2, 100))


def test_draws_have_the_distributions_of_the_paper() -> None:
    many = training_draws(0, 0, 200_000, 1000, (256, 512))
    counts = np.bincount(many.scales)[256:]
    assert len(counts) == 257  # both ends included
    expected = 200_000 / 257
    assert ((counts - expected) ** 2 / expected).sum() < 350  # chi^2 of 256: five deviations
    assert abs(many.flips.mean() - 0.5) < 0.006
    assert 0 <= many.positions.min() < 50
    assert POSITION_ONE - 50 < many.positions.max() < POSITION_ONE
    assert np.abs(many.positions.mean(0) / POSITION_ONE - 0.5).max() < 0.004
    assert len(np.unique(many.keys)) == 200_000
    columns = [many.scales, many.flips, *many.positions.T, *many.colours.T[:1], many.keys / 2.0**63]
    correlations = np.corrcoef(np.array(columns, float)) - np.eye(6)
    assert np.abs(correlations).max() < 0.012


def test_colour_change_has_the_covariance_of_16() -> None:
    colours = training_draws(0, 0, 200_000, 1000, (256, 512)).colours.astype(float)
    values = np.array([55.46, 4.794, 1.148])
    vectors = np.array(  # rows: R, G, B
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    expected = vectors @ np.diag((0.1 * values) ** 2) @ vectors.T
    assert np.allclose(np.cov(colours.T), expected, rtol=0.02, atol=0.05)
    assert np.abs(colours.mean(0)).max() < 0.05
    first = colours @ vectors[:, 0] / 5.546  # the first component, divided by its std
    assert abs((first**4).mean() - 3) < 0.1  # a Gaussian's fourth moment


@pytest.mark.parametrize("crop", [1, 5, 224])
def test_all_crop_offsets_are_equally_likely(crop: int) -> None:
    positions = np.arange(0, POSITION_ONE, 97)
    counts = np.bincount([crop_offset(int(p), crop + 9, crop) for p in positions])
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 2
    assert crop_offset(POSITION_ONE - 1, 4000, 224) == 4000 - 224


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (333, 333), (100, 1000), (999, 64)])
def test_resized_size_is_torchvisions(size: tuple[int, int]) -> None:
    from torchvision.transforms.functional import resize

    height, width = size
    expected = resize(Image.new("L", (width, height)), 256)
    assert resized_size(height, width, 256) == (expected.height, expected.width)


def test_validation_sees_every_image_once() -> None:
    batches = list(centre_batches(np.arange(10), 256, 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert joined(batches)["indices"].tolist() == list(range(10))


def test_a_subset_is_fixed_and_spread_over_all_images() -> None:
    chosen = subset(50_000, 3000)
    assert len(np.unique(chosen)) == 3000
    assert np.array_equal(chosen, subset(50_000, 3000))
    assert abs(chosen.mean() / 25_000 - 1) < 0.05
    assert len(subset(50, 3000)) == len(subset(50, None)) == 50
