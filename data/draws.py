"""Randomness as data: every random number of training is a pure function of seed and position.

Training walks through one endless sequence of images: epoch 0's permutation, then epoch 1's, and
so on. The image at position p of it, with everything drawn for it, depends on the seed and p
alone. So a batch is the same on any number of processes, with either loader, and after any
interruption: the step number is enough to resume.

All numbers come from Philox, a counter-based generator: position p owns the counters 3p .. 3p+2.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# Crop positions in [0, 1) are integers, in units of 2^-20: offsets in pixels follow from them in
# integer arithmetic, which is exact in both loaders.
POSITION_ONE = 1 << 20

# Eigenvalues and eigenvectors of the RGB covariance of ImageNet, pixel values 0..255 ([16]).
# Rows of COLOUR_VECTORS are R, G, B; columns are the components p_k.
COLOUR_STD = 0.1
COLOUR_VALUES = np.array([55.46, 4.794, 1.148])
COLOUR_VECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)

_STREAM_ORDER, _STREAM_SAMPLE, _STREAM_SUBSET = 1, 2, 3
_WORDS = 12  # 64-bit words drawn for a sample: three Philox blocks


@dataclass(frozen=True)
class Draws:
    """Which B images a batch consists of, and how each is shown."""

    indices: Ints  # [B] which image of the index
    scales: Ints  # [B] shorter side of the resized image, pixels
    positions: Ints  # [B, 2] (y, x) of the crop among its possible offsets, in 1 / POSITION_ONE
    flips: npt.NDArray[np.bool_]  # [B] whether the crop is flipped horizontally
    colours: npt.NDArray[np.float32]  # [B, 3] RGB offset added to every pixel value
    keys: Ints  # [B] the sample's key for dropout masks

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, which: slice) -> "Draws":
        """The draws of some of the batch's images, such as a process's share."""
        return Draws(**{f.name: getattr(self, f.name)[which] for f in fields(self)})


def _philox(seed: int, stream: int, counter: int) -> np.random.Philox:
    return np.random.Philox(key=(seed << 64) | stream, counter=counter)


def _unit(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """64 random bits -> a float in (0, 1)."""
    return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def epoch_order(seed: int, epoch: int, num_images: int) -> Ints:
    """[num_images] the order in which epoch `epoch` (from 0) sees all images."""
    generator = np.random.Generator(_philox(seed, _STREAM_ORDER, epoch << 64))
    return generator.permutation(num_images)


def training_draws(
    seed: int, step: int, batch_size: int, num_images: int, scale: tuple[int, int]
) -> Draws:
    """The batch of optimiser step `step` (from 0), as Sec. 3 trains.

    The shorter side is uniform in `scale` (both ends included), the crop position is uniform, half
    of the crops are flipped horizontally, and the colour change of [16] is drawn for each use of an
    image.
    """
    first = step * batch_size
    sequence = np.arange(first, first + batch_size)
    words = _philox(seed, _STREAM_SAMPLE, 3 * first).random_raw(_WORDS * batch_size)
    words = words.reshape(batch_size, _WORDS)
    high = words >> np.uint64(32)
    low_scale, high_scale = scale
    span = np.uint64(high_scale - low_scale + 1)
    # Box-Muller: four uniform numbers give the three alphas ~ N(0, 0.1^2) of [16].
    radius = np.sqrt(-2.0 * np.log(_unit(words[:, 4:6])))
    angle = 2.0 * np.pi * _unit(words[:, 6:8])
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :3]
    return Draws(
        indices=_images_at(seed, sequence, num_images),
        scales=low_scale + ((high[:, 0] * span) >> np.uint64(32)).astype(np.int64),
        positions=(words[:, 1:3] >> np.uint64(44)).astype(np.int64),
        flips=(words[:, 3] >> np.uint64(63)).astype(bool),
        colours=((COLOUR_STD * normal * COLOUR_VALUES) @ COLOUR_VECTORS.T).astype(np.float32),
        keys=words[:, 8].astype(np.int64),
    )


def _images_at(seed: int, sequence: Ints, num_images: int) -> Ints:
    """The images at these positions of the endless sequence of epochs."""
    epochs, within_epoch = np.divmod(sequence, num_images)
    images = np.empty_like(sequence)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        images[rows] = epoch_order(seed, int(epoch), num_images)[within_epoch[rows]]
    return images


def training_batches(
    seed: int, start: int, stop: int, batch_size: int, num_images: int, scale: tuple[int, int]
) -> Iterator[Draws]:
    """The draws of steps start .. stop - 1."""
    for step in range(start, stop):
        yield training_draws(seed, step, batch_size, num_images, scale)


def centre_draws(indices: Ints, scale: int) -> Draws:
    """The centre crop of each image, with neither flip nor colour change."""
    count = len(indices)
    return Draws(
        indices=np.asarray(indices, np.int64),
        scales=np.full(count, scale, np.int64),
        positions=np.full((count, 2), POSITION_ONE // 2, np.int64),
        flips=np.zeros(count, bool),
        colours=np.zeros((count, 3), np.float32),
        keys=np.zeros(count, np.int64),
    )


def centre_batches(indices: Ints, scale: int, batch_size: int) -> Iterator[Draws]:
    """Centre crops of the images `indices`, in this order; the last batch may be smaller."""
    for first in range(0, len(indices), batch_size):
        yield centre_draws(indices[first : first + batch_size], scale)


def subset(num_images: int, count: int | None) -> Ints:
    """The same `count` random images for every run, in index order; None: all images.

    Figs. 2 and 3 measure on 3,000 random validation images. The choice does not depend on the
    run's seed, so that curves of different seeds are measured on the same images.
    """
    if count is None or count >= num_images:
        return np.arange(num_images)
    order = np.random.Generator(_philox(0, _STREAM_SUBSET, 0)).permutation(num_images)
    return np.sort(order[:count])
