"""Images per second of dense testing: ours, a loop over windows, and windows cut out as a batch.

All three share the trunk, both flips, and the resized images, 4:3. Weights are random: speed does
not depend on them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from configs.schema import TrainConfig
from configs.store import compose_config
from data.normalise import CHANNEL_MEAN, network_input
from engine.precision import Precision, set_precision
from evaluation.dense import dense_head, dense_scores, window_size
from models.network import Network, build_network
from scripts.benchmarks.train import seconds_of

WAYS = {
    "ours": "sliding maxima, windows gathered into matrix products",
    "window_loop": "adaptive pooling and fc layers, window after window",
    "unfold": "windows cut out by unfold, pooled and classified as a batch",
}


@dataclass(frozen=True)
class DenseLoad:
    """What is measured."""

    model: str = "A"
    scales: tuple[int, ...] = (256, 384, 480)  # shorter sides, pixels
    images: int = 1  # in a batch
    rounds: int = 2
    crop: int = 224
    precision: str = "fp32"
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")
    overrides: tuple[str, ...] = ()  # further keys of train.py, such as act=relu


def dense_rows(what: DenseLoad) -> list[dict[str, Any]]:
    """Rows {path, scale, images_per_second, max_error}.

    max_error: the largest difference of a probability from window_loop's. Raises UserError for a
    precision that the device cannot do.
    """
    precision = set_precision(what.precision, torch.device(what.device))
    network = _network(what, precision.device)
    ways = _ways(network, what.crop, precision)
    rows = []
    for scale in what.scales:
        shape = (what.images, scale, scale * 4 // 3, 3)
        generator = torch.Generator().manual_seed(scale)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        images = images.to(precision.device)
        scores = {path: way(images) for path, way in ways.items()}  # this is the warm-up as well
        # In turn, and the best counts: other work on the machine only ever slows things down.
        times = [
            {path: seconds_of(partial(way, images)) for path, way in ways.items()}
            for _ in range(what.rounds)
        ]
        for path in WAYS:
            seconds = min(taken[path] for taken in times)
            error = (scores[path] - scores["window_loop"]).abs().max().item()
            rows.append(
                {
                    "path": path,
                    "model": what.model,
                    "scale": scale,
                    "images_per_second": float(f"{what.images / seconds:.3g}"),
                    "max_error": float(f"{error:.2g}"),
                }
            )
    return rows


def dense_table(rows: list[dict[str, Any]], what: DenseLoad) -> str:
    """The rows for people."""
    head = f"model {what.model}, {what.precision}, {what.device}, {what.images} image(s) at once"
    lines = [f"{head}, all windows of both flips", ""]
    lines.append(f"{'scale':>5}  {'path':12} {'images/s':>9} {'max error':>10}")
    for row in rows:
        numbers = f"{row['images_per_second']:9.3g} {row['max_error']:10.1e}"
        lines.append(f"{row['scale']:5}  {row['path']:12} {numbers}  {WAYS[row['path']]}")
    return "\n".join(lines)


def _network(what: DenseLoad, device: torch.device) -> Network:
    """With random weights, and logits of deviation 3."""
    config = compose_config([f"model={what.model}", *what.overrides], TrainConfig)
    network = build_network(config.model, config.act, config.init, 1000).eval()
    network = network.to(device).to(memory_format=torch.channels_last)
    with torch.no_grad():
        # Scores that were all but equal would hide errors.
        images = torch.randint(256, (2, what.crop, what.crop, 3), dtype=torch.uint8).to(device)
        network.head.fc3.weight /= network(network_input(images, _mean(device))).std() / 3
    return network


def _mean(device: torch.device) -> Tensor:
    return torch.tensor(CHANNEL_MEAN, device=device).reshape(1, 1, 3)


def _ways(
    network: Network, crop: int, precision: Precision
) -> dict[str, Callable[[Tensor], Tensor]]:
    """How each path scores images [B, H, W, 3]: float32 [B, K]."""
    dense = dense_head(network, crop, precision)
    mean, side = _mean(precision.device), window_size(network.trunk, crop)

    def classify(windows: Tensor) -> Tensor:
        return network.head(network.spp(windows)).float().softmax(1)

    def loop(maps: Tensor) -> Tensor:
        rows, columns = maps.shape[2] - side + 1, maps.shape[3] - side + 1
        places = [(y, x) for y in range(rows) for x in range(columns)]
        scores = [classify(maps[:, :, y : y + side, x : x + side]) for y, x in places]
        return torch.stack(scores).mean(0)

    def unfold(maps: Tensor) -> Tensor:
        windows = maps.unfold(2, side, 1).unfold(3, side, 1)
        batch = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        return classify(batch).unflatten(0, (len(maps), -1)).mean(1)

    def score(images: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.inference_mode(), precision.autocast():
            views = torch.cat([images, images.flip(2)])
            scores = head(network.trunk(network_input(views, mean)))
            return scores.unflatten(0, (2, -1)).mean(0)

    return {
        "ours": lambda images: dense_scores(network.trunk, dense, images, mean, precision),
        "window_loop": lambda images: score(images, loop),
        "unfold": lambda images: score(images, unfold),
    }
