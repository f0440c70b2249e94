"""What a loader gives: the one contract that both loaders keep.

load(index, draws, crop, loader, on_error, on_event) gives one Batch for each Draws, in order.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from data.draws import Draws


@dataclass
class Batch:
    """B images as they were drawn. Crops share one tensor; whole images keep their own sizes."""

    images: torch.Tensor | list[torch.Tensor]  # uint8 [B, crop, crop, 3] RGB, or B x [h, w, 3]
    labels: torch.Tensor  # int64 [B]
    colours: torch.Tensor  # float32 [B, 3], grey levels, to be added to every pixel
    keys: torch.Tensor  # int64 [B]
    indices: torch.Tensor  # int64 [B] the images shown
    replaced: torch.Tensor  # bool [B] whether it stands for another one, which is unreadable


def make_batch(
    images: torch.Tensor | list[torch.Tensor], labels: np.ndarray, draws: "Draws", shown: np.ndarray
) -> Batch:
    """Put decoded images (the images `shown`, with their labels) and their draws together."""
    return Batch(
        images,
        torch.from_numpy(np.ascontiguousarray(labels, np.int64)),
        torch.from_numpy(draws.colours),
        torch.from_numpy(draws.keys),
        torch.from_numpy(np.ascontiguousarray(shown, np.int64)),
        torch.from_numpy(np.asarray(shown != draws.indices)),
    )
