"""A network with the views it is tested on: images of one size -> scores."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from data.normalise import network_input, warp_mean
from engine.precision import Precision
from evaluation.dense import DenseHead, dense_head, dense_scores
from evaluation.projection import map_geometry
from evaluation.views import plan
from models.network import Network


@dataclass(frozen=True)
class Viewer:
    """Executes a view plan; scores are averaged over the views of an image."""

    network: Network
    mean: Tensor  # [crop, crop, 3] or [1, 1, 3], on the device
    precision: Precision
    crop: int
    views: str  # centre | ten | grid | sparse | dense
    average: str = "probabilities"  # or logits
    square: bool = False
    on_map: bool = False  # windows of centre, ten, grid are pooled on the map, as those of sparse
    full_scale: int = 0  # sparse: shorter side at which the full image is a view too

    @torch.inference_mode()
    def scores(self, images: Tensor) -> Tensor:
        """float32 [B, K], on the CPU, for resized images uint8 RGB [B, H, W, 3]."""
        images = images.to(self.precision.device, non_blocking=True)
        if self.views == "dense":
            found = dense_scores(self.network.trunk, self._dense, images, self.mean, self.precision)
        elif self.on_map or self.views == "sparse":
            found = self._on_map(images)
        else:
            found = self._on_crops(images)
        return found.cpu()

    @cached_property
    def _dense(self) -> DenseHead:
        return dense_head(self.network, self.crop, self.precision, self.average)

    def _finish(self, logits: Tensor) -> Tensor:
        return logits.float() if self.average == "logits" else logits.float().softmax(1)

    def _on_crops(self, images: Tensor) -> Tensor:
        """Every window is cut out of the image and goes through the whole network."""
        _, height, width, _ = images.shape
        mean = warp_mean(self.mean, self.crop, self.crop)
        scores = []
        windows = plan(self.views, height, width, self.crop, square=self.square)
        for window in windows:
            rows = slice(window.y, window.y + self.crop)
            crops = images[:, rows, window.x : window.x + self.crop]
            crops = crops.flip(2) if window.flip else crops
            with self.precision.autocast():
                scores.append(self._finish(self.network(network_input(crops, mean))))
        return torch.stack(scores).mean(0)

    def _on_map(self, images: Tensor) -> Tensor:
        """Every window is projected onto the map of the whole image, and pooled there ([11])."""
        _, height, width, _ = images.shape
        mean = warp_mean(self.mean, height, width)
        geometry = map_geometry(self.network.trunk)
        windows = plan(self.views, height, width, self.crop, square=self.square)
        scores = []
        for flip in sorted({window.flip for window in windows}):
            with self.precision.autocast():
                view = images.flip(2) if flip else images
                maps = self.network.trunk(network_input(view, mean))
                places = [
                    (
                        geometry.project(window.y, self.crop, maps.shape[2]),
                        geometry.project(window.x, self.crop, maps.shape[3]),
                    )
                    for window in windows
                    if window.flip == flip
                ]
                if self.views == "sparse" and min(height, width) == self.full_scale:
                    places.append((slice(None), slice(None)))
                for rows, columns in places:
                    features = self.network.spp(maps[:, :, rows, columns])
                    scores.append(self._finish(self.network.head(features)))
        return torch.stack(scores).mean(0)
