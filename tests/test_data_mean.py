"""The mean that is subtracted: its sizes, and which files are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from data.normalise import CHANNEL_MEAN, load_mean, warp_mean


def test_channel_mean_fits_every_size() -> None:
    mean = load_mean("channel")
    assert mean.shape == (1, 1, 3)
    assert mean.flatten().tolist() == pytest.approx(CHANNEL_MEAN)
    assert warp_mean(mean, 224, 300) is mean
    assert load_mean("channel", (1, 2, 3)).flatten().tolist() == [1, 2, 3]


def test_warp_is_bilinear() -> None:
    """An image that is linear in x and y stays so, sampled at the new pixel centres."""

    def ramp(height: int, width: int) -> torch.Tensor:
        y, x = (torch.arange(n) + 0.5 for n in (height, width))
        plane = 100 * (y[:, None] / height) + 50 * (x[None, :] / width)
        return torch.stack([plane, 2 * plane, plane + 3], dim=2)

    mean = ramp(32, 32)
    assert warp_mean(mean, 32, 32) is mean
    inner = slice(2, -2)  # beyond the outermost pixel centres, values are repeated
    for size in ((48, 64), (32, 50), (33, 32)):
        torch.testing.assert_close(warp_mean(mean, *size)[inner, inner], ramp(*size)[inner, inner])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, "no mean image at"),
        (b"text", r"not a \.npy file"),
        (np.zeros((3, 8, 8), np.float32), "shape 3 x 8 x 8 instead of S x S x 3"),
        (np.zeros((8, 9, 3), np.float32), "shape 8 x 9 x 3"),
        (np.full((8, 8, 3), np.nan, np.float32), "outside 0"),
        (np.full((8, 8, 3), 300.0), "outside 0"),
    ],
)
def test_files_that_hold_no_mean_are_refused(tmp_path: Path, array: object, message: str) -> None:
    file = tmp_path / "mean.npy"
    if isinstance(array, bytes):
        file.write_bytes(array)
    elif isinstance(array, np.ndarray):
        np.save(file, array)
    with pytest.raises(UserError, match=message):
        load_mean(str(file))
