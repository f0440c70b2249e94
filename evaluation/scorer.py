"""Scores of images by one network: resized images of one size -> scores, averaged over views."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from data.normalise import network_input, warp_mean
from engine.precision import Precision
from evaluation.dense import DenseHead, dense_scores
from evaluation.projection import map_geometry
from evaluation.views import Views, image_windows
from models.network import Network


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores images: the mean over the views of each."""

    network: Network
    mean: Tensor  # [crop, crop, 3] or [1, 1, 3], on the device
    precision: Precision
    crop: int
    views: str  # a value of Views
    average: str = "probabilities"  # or logits
    square: bool = False  # windows of the central square, not of the whole image
    on_map: bool = False  # CENTRE, TEN, GRID: pool windows on the feature map, as SPARSE does
    full_image_scale: int = 0  # SPARSE: the shorter side at which the full image is a view too

    @torch.inference_mode()
    def scores(self, images: Tensor) -> Tensor:
        """float32 [B, K], on the CPU, for resized images uint8 RGB [B, H, W, 3]."""
        images = images.to(self.precision.device, non_blocking=True)
        if self.views == Views.DENSE:
            head = self._dense_head
            return dense_scores(self.network.trunk, head, images, self.mean, self.precision).cpu()
        if self.on_map or self.views == Views.SPARSE:
            return self._pool_on_map(images).cpu()
        return self._cut_crops(images).cpu()

    @cached_property
    def _dense_head(self) -> DenseHead:
        return DenseHead(self.network, self.crop, self.precision, average=self.average)

    def _to_scores(self, logits: Tensor) -> Tensor:
        return logits.float() if self.average == "logits" else logits.float().softmax(1)

    def _cut_crops(self, images: Tensor) -> Tensor:
        """Each window is cut out of the image and goes through the whole network."""
        _, height, width, _ = images.shape
        mean = warp_mean(self.mean, self.crop, self.crop)
        scores = []
        for window in image_windows(self.views, height, width, self.crop, square=self.square):
            rows = slice(window.y, window.y + self.crop)
            crops = images[:, rows, window.x : window.x + self.crop]
            crops = crops.flip(2) if window.flip else crops
            with self.precision.autocast():
                scores.append(self._to_scores(self.network(network_input(crops, mean))))
        return torch.stack(scores).mean(0)

    def _pool_on_map(self, images: Tensor) -> Tensor:
        """Each window is projected onto the map of the whole image and pooled there ([11])."""
        _, height, width, _ = images.shape
        mean = warp_mean(self.mean, height, width)
        geometry = map_geometry(self.network.trunk)
        windows = image_windows(self.views, height, width, self.crop, square=self.square)
        scores = []
        for flip in sorted({window.flip for window in windows}):
            with self.precision.autocast():
                view = images.flip(2) if flip else images
                maps = self.network.trunk(network_input(view, mean))
                parts = []
                for window in windows:
                    if window.flip == flip:
                        rows = geometry.project(window.y, self.crop, maps.shape[2])
                        columns = geometry.project(window.x, self.crop, maps.shape[3])
                        parts.append(maps[:, :, rows, columns])
                if self.views == Views.SPARSE and min(height, width) == self.full_image_scale:
                    parts.append(maps)
                for part in parts:
                    scores.append(self._to_scores(self.network.head(self.network.spp(part))))
        return torch.stack(scores).mean(0)
