"""Dense multi-view testing on feature maps (Sec. 3, [11]).

The convolutions run once over the whole resized image. Each window of the last map, as large as the
map of a training crop, is one view. The same is done for the flipped image.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.normalise import network_input, warp_mean
from engine.precision import Precision
from evaluation.windows import PooledWindows
from models.architecture import map_side
from models.network import Network, kernel_shapes

AVERAGES = ["probabilities", "logits"]

# Bounds on memory, which do not change the results.
WINDOWS_AT_ONCE = 1024  # in fc1: 0.23 GB of features for model C in fp32
PIXELS_AT_ONCE = 2**21  # in the trunk: an image of 480 x 3840


def window_size(trunk: nn.Module, crop: int) -> int:
    """Side of the last map of a crop x crop image: at 224, 14 for A, B, C; 18 for small14."""
    side = crop
    for kernel, stride, pad in kernel_shapes(trunk):
        side = map_side(side, kernel, stride, pad)
    return side


class DenseHead:
    """Pyramid pooling and fc layers on all windows of a map.

    The network was trained on crop x crop images. `weight` is a copy of fc1's weights in the type
    of `precision`, its columns in the order of PooledWindows.features; later changes of the network
    do not reach it.
    """

    def __init__(
        self,
        network: Network,
        crop: int,
        precision: Precision,
        *,
        average: str = "probabilities",
        chunk: int = WINDOWS_AT_ONCE,
    ) -> None:
        if average not in AVERAGES:
            raise ValueError(f"average={average} is not one of {', '.join(AVERAGES)}")
        self.head, self.levels = network.head, network.spp.levels
        self.window = window_size(network.trunk, crop)
        self.average, self.chunk = average, chunk
        with precision.autocast():
            device = precision.device.type
            autocast = torch.is_autocast_enabled(device)
            dtype = torch.get_autocast_dtype(device) if autocast else torch.float32
        self.weight = permuted_columns(self.head.fc1.weight.detach(), self.levels, dtype)

    @torch.inference_mode()
    def __call__(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] -> float32 [B, K]: probabilities, or logits, averaged over all windows."""
        windows = PooledWindows(maps, self.levels, self.window)
        total = len(windows)
        # Chunks are equal: a small last one would read all of fc1's weights for a few windows.
        num_chunks = -(-total // self.chunk)
        limits = [total * i // num_chunks for i in range(num_chunks + 1)]
        scores = [self._scores(windows.features(*chunk)) for chunk in pairwise(limits)]
        return torch.cat(scores).unflatten(0, (-1, windows.per_image)).mean(1)

    def _scores(self, features: Tensor) -> Tensor:
        """Features of N windows [N, bins * C] -> probabilities or logits, float32 [N, K]."""
        head = self.head
        x = head.rect1(F.linear(features, self.weight, head.fc1.bias))
        logits = head.fc3(head.rect2(head.fc2(x))).float()
        return logits if self.average == "logits" else logits.softmax(1)


def permuted_columns(weight: Tensor, levels: list[int], dtype: torch.dtype) -> Tensor:
    """fc1's weights [D, C * bins]: columns (level, channel, bin) become (level, bin, channel)."""
    num_bins = [n * n for n in levels]
    channels = weight.shape[1] // sum(num_bins)
    by_level = weight.to(dtype).split([channels * n for n in num_bins], dim=1)
    by_bin = [level.unflatten(1, (channels, -1)).transpose(1, 2) for level in by_level]
    return torch.cat(by_bin, dim=1).flatten(1)


@torch.inference_mode()
def dense_scores(
    trunk: nn.Module,
    head: DenseHead,
    images: Tensor,
    mean: Tensor,
    precision: Precision,
    *,
    pixels: int = PIXELS_AT_ONCE,
) -> Tensor:
    """Scores float32 [B, K], on the device, averaged over all windows of the image and its flip.

    images: uint8 RGB [B, H, W, 3], resized but not cropped; mean: [1, 1, 3], or a mean image, which
    is warped to H x W as in [11]. The trunk takes one image, or up to `pixels`, at once.
    """
    images = images.to(precision.device, non_blocking=True)
    _, height, width, _ = images.shape
    mean = warp_mean(mean.to(precision.device), height, width)
    views = torch.cat([images, images.flip(2)])
    with precision.autocast():
        scores = [
            head(trunk(network_input(batch, mean)))
            for batch in views.split(max(1, pixels // (height * width)))
        ]
    return torch.cat(scores).unflatten(0, (2, -1)).mean(0)
