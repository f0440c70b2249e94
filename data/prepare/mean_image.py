"""The mean image of a training set (Sec. 3), and the covariance of its colours ([16]).

Both are of the centre crops that validation sees, so that every image counts alike whatever its
size, and one pass over the images does. Sums are integers: the result does not depend on how the
images were divided among processes.
"""

from dataclasses import dataclass
from typing import Any

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
    """Of N images seen through their centre crops of S x S pixels; RGB, grey levels 0..255."""

    num_images: int
    unreadable: list[str]  # paths of images that are left out
    mean: Floats  # [S, S, 3]
    covariance: Floats  # [3, 3] of the colours of all pixels, squared grey levels

    @property
    def channel_mean(self) -> Floats:
        """[3]"""
        return self.mean.mean((0, 1))

    def principal_colours(self) -> tuple[Floats, Floats]:
        """Eigenvalues [3] of the covariance, largest first, and eigenvectors, columns of [3, 3].

        An eigenvector's sign is free: here it points as that of COLOUR_VECTORS does.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        values, vectors = values[::-1], vectors[:, ::-1]
        return values, vectors * np.where((vectors * COLOUR_VECTORS).sum(0) < 0, -1, 1)


@dataclass(frozen=True)
class _View:
    """What is done with each part of the index; sent to the worker processes."""

    crop: int
    scale: int
    skip: bool

    def __call__(self, index: ImageIndex, part: range) -> tuple[int, Sums, Sums, list[str]]:
        """Number of images, sums of pixels [S, S, 3] and of products [3, 3], what was left out."""
        pixels = np.zeros((self.crop, self.crop, 3), np.int64)
        products, bad = np.zeros((3, 3), np.int64), list[str]()
        place = centre_draws(np.zeros(1, np.int64), self.scale).places[0]
        for i in part:
            try:
                crop = show(index.read(i), self.scale, place, False, self.crop)
            except (BadImage, OSError) as error:
                bad.append(f"{index.path(i)} ({reason(error)})")
                if not self.skip:
                    raise UserError(
                        f"cannot read image {bad[0]}: replace the file, or leave it out with --skip"
                    ) from error
                continue
            pixels += crop
            planes = crop.reshape(-1, 3).T.astype(np.int64)
            products += planes @ planes.T
        return len(part) - len(bad), pixels, products, bad


def statistics(index: ImageIndex, crop: int, scale: int, workers: int, skip: bool) -> Statistics:
    """Mean and covariance over the centre crops of all images, by so many processes.

    crop: side of the crops; scale: shorter side of the resized images. skip: leave out an image
    that cannot be read. Raises UserError for such an image otherwise, and if there is none left.
    """
    count, bad = 0, list[str]()
    pixels = np.zeros((crop, crop, 3), np.int64)
    products = np.zeros((3, 3), np.int64)
    view = _View(crop, scale, skip)
    for found, part_pixels, part_products, part_bad in over_images(
        view, index, workers, "mean image"
    ):
        count += found
        pixels += part_pixels
        products += part_products
        for name in part_bad:
            tqdm.write(f"left out: {name}")
        bad += part_bad
    if not count:
        raise UserError("there is no image to take the mean of")
    num_pixels = count * crop * crop
    colour = pixels.sum((0, 1)) / num_pixels
    covariance = products / num_pixels - np.outer(colour, colour)
    return Statistics(count, bad, pixels / count, covariance)


def facts_of(found: Statistics, scale: int, fingerprint: str) -> dict[str, Any]:
    """What is written beside the mean image, as plain values."""
    values, vectors = found.principal_colours()
    return {
        "num_images": found.num_images,
        "unreadable": found.unreadable,
        "data_set": fingerprint,
        "crop": len(found.mean),
        "scale": scale,
        "channel_mean": found.channel_mean.tolist(),
        "covariance": found.covariance.tolist(),
        "eigenvalues": values.tolist(),
        "eigenvectors": vectors.tolist(),
        "colour_values": (values / 255).tolist(),
        "in_use": {
            "CHANNEL_MEAN": list(CHANNEL_MEAN),
            "COLOUR_VALUES": COLOUR_VALUES.tolist(),
            "COLOUR_VECTORS": COLOUR_VECTORS.tolist(),
        },
    }


def table(found: Statistics) -> str:
    """Mean colour and principal colours, beside the constants that training uses.

    The values of [16] in common use have the size of eigenvalues for colours in 0..1, times 255:
    those of the covariance here, divided by 255.
    """
    values, vectors = found.principal_colours()
    rows = [
        ("mean colour, R G B", found.channel_mean),
        ("  CHANNEL_MEAN (Caffe)", np.array(CHANNEL_MEAN)),
        ("eigenvalues of the covariance", values),
        ("  divided by 255", values / 255),
        ("  COLOUR_VALUES ([16])", COLOUR_VALUES),
    ]
    for k in range(3):
        rows.append((f"eigenvector {k + 1}, R G B", vectors[:, k]))
        rows.append((f"  COLOUR_VECTORS {k + 1} ([16])", COLOUR_VECTORS[:, k]))
    return "\n".join(f"{name:30}" + "".join(f"{x:12.4f}" for x in row) for name, row in rows)
