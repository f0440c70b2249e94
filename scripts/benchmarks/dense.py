"""Images per second of dense testing: ours, a loop over windows, and windows cut out as a batch.

All three see the same 4:3 images and their horizontal flips, through the same trunk. Trunk and head
are also measured separately, the head beside its matrix products, which bound it. Weights are
random: speed does not depend on them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.schema import TrainConfig
from configs.store import compose_config
from data.normalise import load_mean, network_input
from engine.precision import Precision, set_precision
from evaluation.dense import DenseHead, dense_scores
from evaluation.windows import PooledWindows
from models.network import Network, build_network
from scripts.benchmarks.benchmark import (
    NUM_CLASSES,
    NetworkBenchmark,
    Row,
    option,
    rounded,
    seconds_of,
    time_in_turns,
)


@dataclass(frozen=True)
class DenseRow(Row):
    """The speed of one way to test densely, at one scale."""

    model: str
    scale: int  # shorter side, pixels
    images_per_second: float  # median of the rounds
    spread: float  # from the slowest to the fastest round, relative to the median
    max_error: float | None  # largest difference of a probability from window_loop's


@dataclass(frozen=True, kw_only=True)
class DenseBenchmark(NetworkBenchmark):
    """Dense testing of whole images."""

    paths: ClassVar = {
        "ours": "sliding maxima, all windows in large matrix products",
        "window_loop": "adaptive pooling and fc layers, window after window",
        "unfold": "windows cut out by unfold, pooled and classified as a batch",
        "trunk": "the convolutions alone, image and flip as one batch",
        "head": "ours without the trunk",
        "head_bound": "the head's matrix products alone",
    }

    scales: Sequence[int] = option((256, 384, 480), "shorter sides, pixels")
    images: int = option(1, "images in a batch")
    overrides: tuple[str, ...] = ()  # further keys of train.py, such as act=relu

    def measure(self) -> list[DenseRow]:
        """Six rows for each scale. Raises UserError for a precision the device cannot do."""
        precision = set_precision(self.precision, torch.device(self.device))
        network = self._network()
        dense = DenseHead(network, self.crop, precision)
        rows = []
        for scale in self.scales:
            shape = (self.images, scale, scale * 4 // 3, 3)
            generator = torch.Generator().manual_seed(scale)
            images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            images = images.to(precision.device)
            ways = _ways(network, dense, images, precision)
            scores = {path: run() for path, run in ways.items()}  # also the warm-up
            runs = ways | _parts(network, dense, images, precision)
            timings = time_in_turns(
                {path: partial(seconds_of, run) for path, run in runs.items()}, self.rounds
            )
            for path, timing in timings.items():
                error = None
                if path in scores:
                    error = rounded((scores[path] - scores["window_loop"]).abs().max().item(), 2)
                speed = rounded(self.images / timing.median, 3)
                rows.append(DenseRow(path, self.model, scale, speed, timing.spread, error))
        return rows

    def _network(self) -> Network:
        """With random weights, and logits whose std is 3: equal scores would hide errors."""
        config = compose_config([f"model={self.model}", *self.overrides], TrainConfig)
        network = build_network(config.model, config.act, config.init, NUM_CLASSES).eval()
        network = network.to(self.device).to(memory_format=torch.channels_last)
        with torch.no_grad():
            images = torch.randint(256, (2, self.crop, self.crop, 3), dtype=torch.uint8)
            logits = network(network_input(images.to(self.device), _mean(self.device)))
            network.head.fc3.weight /= logits.std() / 3
        return network


def _mean(device: torch.device | str) -> Tensor:
    return load_mean("channel").to(device)


def _ways(
    network: Network, dense: DenseHead, images: Tensor, precision: Precision
) -> dict[str, Callable[[], Tensor]]:
    """How each way scores images uint8 [B, H, W, 3]: float32 [B, K]."""
    mean, side = _mean(images.device), dense.window

    def classify(windows: Tensor) -> Tensor:
        return network.head(network.spp(windows)).float().softmax(1)

    def loop(maps: Tensor) -> Tensor:
        rows, columns = maps.shape[2] - side + 1, maps.shape[3] - side + 1
        scores = [
            classify(maps[:, :, y : y + side, x : x + side])
            for y in range(rows)
            for x in range(columns)
        ]
        return torch.stack(scores).mean(0)

    def unfold(maps: Tensor) -> Tensor:
        windows = maps.unfold(2, side, 1).unfold(3, side, 1)
        batch = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return classify(batch).unflatten(0, (len(maps), -1)).mean(1)

    def score(head: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.inference_mode(), precision.autocast():
            views = torch.cat([images, images.flip(2)])
            scores = head(network.trunk(network_input(views, mean)))
            return scores.unflatten(0, (2, -1)).mean(0)

    return {
        "ours": lambda: dense_scores(network.trunk, dense, images, mean, precision),
        "window_loop": lambda: score(loop),
        "unfold": lambda: score(unfold),
    }


def _parts(
    network: Network, dense: DenseHead, images: Tensor, precision: Precision
) -> dict[str, Callable[[], Tensor]]:
    """The parts of our way for images uint8 [B, H, W, 3], and the products that bound the head."""
    views = network_input(torch.cat([images, images.flip(2)]), _mean(images.device))
    head = network.head

    def trunk() -> Tensor:
        with torch.inference_mode(), precision.autocast():
            return network.trunk(views)

    def head_on_map() -> Tensor:
        with precision.autocast():
            return dense(maps)

    def products() -> Tensor:
        with torch.inference_mode(), precision.autocast():
            x = F.linear(F.linear(features, dense.weight), head.fc2.weight)
            return F.linear(x, head.fc3.weight)

    maps = trunk()
    num_windows = len(PooledWindows(maps, dense.levels, dense.window))
    features = maps.new_zeros(num_windows, dense.weight.shape[1])
    return {"trunk": trunk, "head": head_on_map, "head_bound": products}
