"""A trained network as one module for use elsewhere: uint8 images in, probabilities out."""

from pathlib import Path

import torch
from torch import Tensor, nn

from configs.schema import TrainConfig
from configs.store import from_dict
from data.normalise import network_input, warp_mean
from engine.checkpoint import State, load_checkpoint
from evaluation.windows import pyramid_bins
from models.network import Network, build_network


class Classifier(nn.Module):
    """Classifies crops as `views=centre` does, mean subtraction and softmax included."""

    mean: Tensor

    def __init__(
        self, network: Network, mean: Tensor, *, name: str, crop: int, classes: list[str]
    ) -> None:
        super().__init__()
        self.network, self.name, self.crop, self.classes = network, name, crop, classes
        self.register_buffer("mean", warp_mean(mean, crop, crop))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 RGB [B, crop, crop, 3] -> probabilities, float32 [B, classes]."""
        maps = self.network.trunk(network_input(images, self.mean))
        return self.network.head(self._pool(maps)).softmax(1)

    def _pool(self, maps: Tensor) -> Tensor:
        """models/spp.py for maps of a fixed size: ONNX has no adaptive pooling."""
        _, _, height, width = maps.shape
        features = []
        for level in self.network.spp.levels:
            pooled = [
                maps[:, :, b.y : b.y + b.height, b.x : b.x + b.width].amax((2, 3))
                for b in pyramid_bins([level], height, width)
            ]
            features.append(torch.stack(pooled, dim=2).flatten(1))
        return torch.cat(features, dim=1)


def restore_network(state: State, run: TrainConfig) -> Network:
    """The network of a run's checkpoint, on the CPU; removes the weights from `state`."""
    network = build_network(run.model, run.act, run.init, len(state["classes"]), seed=None)
    network.load_state_dict(state["network"])
    state["network"].clear()  # frees the second copy of a large model
    return network


def load_classifier(checkpoint: Path) -> Classifier:
    """The network of a checkpoint, on the CPU, in fp32, for testing.

    Raises UserError if the file is missing, damaged or not a checkpoint.
    """
    state = load_checkpoint(checkpoint)
    run = from_dict(state["config"], TrainConfig)
    return Classifier(
        restore_network(state, run),
        state["mean"],
        name=run.model.name,
        crop=run.data.crop,
        classes=state["classes"],
    ).eval()
