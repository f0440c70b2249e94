"""Dropout masks are a function of the sample's key."""

import torch

from models.dropout import Dropout, hash_bits, keep_mask, unit_keys

KEYS = torch.randint(-(2**62), 2**62, (512,), generator=torch.Generator().manual_seed(3))
UNITS = unit_keys(1, 1024)


def test_hash_is_splitmix64() -> None:
    # The first output of SplitMix64 from state 1234567, as its authors publish it.
    state = torch.tensor([1234567 - 0x61C8864680B583EB])
    assert hash_bits(state).item() == 6457827717110365317


def test_masks_look_independent() -> None:
    mask = keep_mask(KEYS, UNITS, 0.5).double()
    count = mask.numel()
    assert abs(mask.mean().item() - 0.5) < 4 * 0.5 / count**0.5
    for axis in (0, 1):  # every unit and every sample: binomial, five deviations
        assert (mask.mean(axis) - 0.5).abs().max() < 5 * 0.5 / mask.shape[axis] ** 0.5
    signed = 2 * mask - 1
    for other in (
        signed.roll(1, 0),
        signed.roll(1, 1),
        2 * keep_mask(KEYS, unit_keys(2, 1024), 0.5) - 1,
    ):
        assert abs((signed * other).mean().item()) < 5 / count**0.5


def test_other_rates_and_scaling() -> None:
    x = torch.ones(512, 1024)
    y = Dropout(0.2, 1, 1024)(x, KEYS)
    kept = y > 0
    assert abs(kept.double().mean().item() - 0.8) < 0.005
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.8))
    assert Dropout(0.5, 1, 1024)(x, None) is x


def test_a_part_of_the_batch_or_of_the_units_gets_its_part_of_the_mask() -> None:
    whole = keep_mask(KEYS, UNITS, 0.5)
    assert torch.equal(whole[100:200], keep_mask(KEYS[100:200], UNITS, 0.5))
    assert torch.equal(whole[:, 512:], keep_mask(KEYS, UNITS[512:], 0.5))
