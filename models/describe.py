"""What an architecture costs, layer by layer: map sizes, multiply-adds, parameters, initial std."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.activations import FixedRectifier, PReLU
from models.init import layer_stds
from models.network import IMAGE_CHANNELS, build_network
from models.spp import SpatialPyramidPooling

if TYPE_CHECKING:
    from configs.schema import ActConfig, InitConfig, ModelConfig

# Dense bf16 matrix products, operations per second, as NVIDIA states them, and the share of them
# that a network is taken to reach: nobody has measured it here.
CARDS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
SHARE = 0.4


@dataclass
class Layer:
    """One layer, for one image."""

    name: str
    kind: str  # conv | pool | spp | fc
    shape: list[int]  # of the output: [C, h, w] or [features]
    multiply_adds: int  # conv and fc
    parameters: int  # weights and biases
    slopes: int  # learned slopes of the rectifier that follows
    std: float | None  # initial standard deviation of the weights


@dataclass
class Description:
    """The layers of a network and their sums."""

    layers: list[Layer]
    weight_layers: int
    multiply_adds: int
    parameters: int  # weights and biases of conv and fc layers
    slopes: int  # learned slopes, counted apart from the parameters


def _kind(module: nn.Module) -> str | None:
    match module:
        case nn.Conv2d():
            return "conv"
        case nn.MaxPool2d():
            return "pool"
        case SpatialPyramidPooling():
            return "spp"
        case nn.Linear():
            return "fc"
    return None


def _multiply_adds(module: nn.Module, out: Tensor) -> int:
    """One for each weight at each position of the output."""
    if isinstance(module, nn.Conv2d):
        return out[0, 0].numel() * module.weight.numel()
    return module.weight.numel() if isinstance(module, nn.Linear) else 0


def describe(
    model: "ModelConfig", act: "ActConfig", init: "InitConfig", num_classes: int, crop: int
) -> Description:
    """Trace a crop x crop image through the network on the meta device: no memory, no arithmetic.

    Raises ValueError if the image is too small for the layers.
    """
    with torch.device("meta"):
        network = build_network(model, act, init, num_classes, seed=None)
        image = torch.empty(1, IMAGE_CHANNELS, crop, crop)
    stds = layer_stds(network, init, act)
    layers: list[Layer] = []

    def add_layer(name: str, module: nn.Module, out: Tensor) -> None:
        if isinstance(module, PReLU):
            layers[-1].slopes = module.slopes.numel()
        kind = _kind(module)
        if kind is not None:
            parameters = sum(p.numel() for p in module.parameters())
            cost = _multiply_adds(module, out)
            shape = list(out.shape[1:])
            label = name.rsplit(".", 1)[-1]
            layers.append(Layer(label, kind, shape, cost, parameters, 0, stds.get(name)))

    for name, module in network.named_modules():
        if _kind(module) or isinstance(module, PReLU | FixedRectifier):
            module.register_forward_hook(
                lambda module, _inputs, out, name=name: add_layer(name, module, out)
            )
    try:
        network(image)
    except RuntimeError as error:
        raise ValueError(f"data.crop={crop} is too small for model {model.name}") from error
    return Description(
        layers=layers,
        weight_layers=len(stds),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        parameters=sum(layer.parameters for layer in layers),
        slopes=sum(layer.slopes for layer in layers),
    )


def hours_by_arithmetic(multiply_adds: float, card: str) -> float:
    """Hours at SHARE of the card's matrix rate; a multiply-add is two operations."""
    return 2 * multiply_adds / (SHARE * CARDS[card]) / 3600


def basis(card: str) -> str:
    """What hours_by_arithmetic rests on, for a person."""
    rate = f"{CARDS[card] / 1e12:.0f} TFLOP/s that NVIDIA states for one {card}"
    return f"by arithmetic, not by measurement: {SHARE:.0%} of the {rate}"


def table(description: Description) -> str:
    """The description for a person: one line a layer, then the sums."""
    header = ("layer", "output", "multiply-adds", "parameters", "slopes", "weight std")
    rows: list[tuple[Any, ...]] = [
        (
            layer.name,
            " x ".join(map(str, layer.shape)),
            f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.slopes:,}" if layer.slopes else "",
            "" if layer.std is None else f"{layer.std:.4f}",
        )
        for layer in description.layers
    ]
    sums = (description.multiply_adds, description.parameters, description.slopes)
    last = f"{description.weight_layers} weight layers"
    rows.append((last, "", *(f"{number:,}" for number in sums), ""))
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)
