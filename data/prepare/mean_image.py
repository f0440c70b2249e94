"""The mean image of a training set (Sec. 3), and the covariance of its colours ([16]).

Both are of the centre crops that validation sees: every image counts alike, whatever its size, and
one pass is enough. Sums are integers, so the result does not depend on how the images were divided
among processes.
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.errors import UserError, reason
from data.decoding import BadImage, show
from data.draws import COLOUR_VALUES, COLOUR_VECTORS, centre_draws
from data.normalise import CHANNEL_MEAN
from data.prepare.pool import over_images
from data.sources.index import ImageIndex

Floats = npt.NDArray[np.float64]
Sums = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Statistics:
    """Of the centre crops, S x S pixels, of the images; RGB, pixel values 0..255."""

    num_images: int
    unreadable: list[str]  # the images left out, each as "path (reason)"
    mean: Floats  # [S, S, 3]
    covariance: Floats  # [3, 3] of the colours of all pixels

    @property
    def channel_mean(self) -> Floats:
        """[3]"""
        return self.mean.mean((0, 1))

    def principal_colours(self) -> tuple[Floats, Floats]:
        """Eigenvalues [3] of the covariance, largest first, and eigenvectors, columns of [3, 3].

        The sign of an eigenvector is arbitrary; ours follow COLOUR_VECTORS.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        values, vectors = values[::-1], vectors[:, ::-1]
        return values, vectors * np.where((vectors * COLOUR_VECTORS).sum(0) < 0, -1, 1)


@dataclass
class _Sums:
    """Over the centre crops of some images."""

    pixels: Sums  # [S, S, 3]
    products: Sums  # [3, 3] of the channels, over all pixels
    num_images: int = 0
    unreadable: list[str] = field(default_factory=list)


def _zero(crop: int) -> _Sums:
    return _Sums(np.zeros((crop, crop, 3), np.int64), np.zeros((3, 3), np.int64))


def _sum_crops(index: ImageIndex, rows: range, *, crop: int, scale: int, skip: bool) -> _Sums:
    """Sums over these images of the index; for data.prepare.pool."""
    sums = _zero(crop)
    centre = centre_draws(np.zeros(1, np.int64), scale)
    for i in rows:
        try:
            image = show(index.read(i), centre, 0, crop=crop)
        except (BadImage, OSError) as error:
            unreadable = f"{index.path(i)} ({reason(error)})"
            if not skip:
                raise UserError(
                    f"cannot read image {unreadable}: replace the file, or leave it out with --skip"
                ) from error
            sums.unreadable.append(unreadable)
            continue
        channels = image.reshape(-1, 3).T.astype(np.int64)
        sums.pixels += image
        sums.products += channels @ channels.T
        sums.num_images += 1
    return sums


def statistics(
    index: ImageIndex, *, crop: int, scale: int, num_workers: int, skip: bool
) -> Statistics:
    """Mean and covariance over the centre crops of all images, by `num_workers` processes.

    crop: side of the crops; scale: shorter side of the resized images. skip: leave out images that
    cannot be read; without it they raise UserError, as does having no image left.
    """
    work = partial(_sum_crops, crop=crop, scale=scale, skip=skip)
    total = _zero(crop)
    for sums in over_images(work, index, num_workers=num_workers, title="mean image"):
        total.pixels += sums.pixels
        total.products += sums.products
        total.num_images += sums.num_images
        total.unreadable += sums.unreadable
        for unreadable in sums.unreadable:
            tqdm.write(f"left out: {unreadable}")
    if not total.num_images:
        raise UserError("there is no image to take the mean of")
    num_pixels = total.num_images * crop**2
    channel_mean = total.pixels.sum((0, 1)) / num_pixels
    covariance = total.products / num_pixels - np.outer(channel_mean, channel_mean)
    mean = total.pixels / total.num_images
    return Statistics(total.num_images, total.unreadable, mean, covariance)


def to_json(result: Statistics, scale: int, fingerprint: str) -> dict[str, object]:
    """The JSON file beside the mean image, as plain values."""
    values, vectors = result.principal_colours()
    return {
        "num_images": result.num_images,
        "unreadable": result.unreadable,
        "data_set": fingerprint,
        "crop": len(result.mean),
        "scale": scale,
        "channel_mean": result.channel_mean.tolist(),
        "covariance": result.covariance.tolist(),
        "eigenvalues": values.tolist(),
        "eigenvectors": vectors.tolist(),
        "colour_values": (values / 255).tolist(),
    }


def table(result: Statistics) -> str:
    """Mean colour and principal colours, beside the constants that training uses.

    The usual values of [16] are eigenvalues for colours in 0..1, times 255: ours, divided by 255.
    """
    values, vectors = result.principal_colours()
    rows = [
        ("mean colour, R G B", result.channel_mean),
        ("  CHANNEL_MEAN (Caffe)", np.array(CHANNEL_MEAN)),
        ("eigenvalues of the covariance", values),
        ("  divided by 255", values / 255),
        ("  COLOUR_VALUES ([16])", COLOUR_VALUES),
    ]
    for k in range(3):
        rows.append((f"eigenvector {k + 1}, R G B", vectors[:, k]))
        rows.append((f"  COLOUR_VECTORS {k + 1} ([16])", COLOUR_VECTORS[:, k]))
    return "\n".join(f"{name:30}" + "".join(f"{x:12.4f}" for x in row) for name, row in rows)
