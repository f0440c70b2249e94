"""What an architecture costs, layer by layer: map sizes, multiply-adds, parameters, initial std."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.architecture import PoolLayer, map_side, num_features, trunk_layers
from models.init import conv_std

if TYPE_CHECKING:
    from configs.schema import ActConfig, InitConfig, ModelConfig

# Dense bf16 matrix products, operations per second, as NVIDIA states them, and the share of them
# that a network is taken to reach: nobody has measured it here.
CARDS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
SHARE = 0.4

_WEIGHT = 4  # bytes; weights, gradients and momentum are fp32 whatever the arithmetic


@dataclass
class Layer:
    """One layer, for one image."""

    name: str
    kind: str  # conv | pool | spp | fc
    shape: list[int]  # of the output: [C, h, w] or [features]
    multiply_adds: int = 0  # conv and fc: one for each weight at each position of the output
    parameters: int = 0  # weights and biases
    slopes: int = 0  # learned slopes of the rectifier that follows
    std: float | None = None  # initial standard deviation of the weights


@dataclass
class Description:
    """The layers of a network and their sums."""

    layers: list[Layer]
    weight_layers: int
    multiply_adds: int
    parameters: int  # weights and biases of conv and fc layers
    slopes: int  # learned slopes, counted apart from the parameters


def describe(
    model: "ModelConfig", act: "ActConfig", init: "InitConfig", num_classes: int, crop: int
) -> Description:
    """The layers of a network for a crop x crop image, by arithmetic.

    Raises ValueError if the image is too small for the layers.
    """
    layers = [*_trunk(model, act, init, crop), *_head(model, act, init, num_classes)]
    return Description(
        layers=layers,
        weight_layers=sum(layer.kind in ("conv", "fc") for layer in layers),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        parameters=sum(layer.parameters for layer in layers),
        slopes=sum(layer.slopes for layer in layers),
    )


def _trunk(
    model: "ModelConfig", act: "ActConfig", init: "InitConfig", crop: int
) -> Iterator[Layer]:
    side, channels = crop, 0
    for layer in trunk_layers(model):
        try:
            side = map_side(side, layer.kernel, layer.stride, layer.pad)
        except ValueError as error:
            raise ValueError(f"data.crop={crop} is too small for model {model.name}") from error
        if isinstance(layer, PoolLayer):
            yield Layer(layer.name, "pool", [channels, side, side])
        else:
            channels = layer.out_channels
            std = conv_std(layer.fan_in, layer.fan_out, init, act.slope)
            shape, slopes = [channels, side, side], act.num_slopes(channels)
            yield _weighted(layer.name, "conv", shape, layer.fan_in, slopes, std)


def _head(
    model: "ModelConfig", act: "ActConfig", init: "InitConfig", num_classes: int
) -> Iterator[Layer]:
    features = num_features(model)
    yield Layer("spp", "spp", [features])
    widths = [*model.fc, num_classes]
    for i, (width, std) in enumerate(zip(widths, init.fc_std, strict=True), 1):
        slopes = act.num_slopes(width) if i < len(widths) else 0  # no rectifier after fc3
        yield _weighted(f"fc{i}", "fc", [width], features, slopes, std)
        features = width


def _weighted(
    name: str, kind: str, shape: list[int], fan_in: int, slopes: int, std: float
) -> Layer:
    weights = fan_in * shape[0]
    multiply_adds, parameters = weights * math.prod(shape[1:]), weights + shape[0]
    return Layer(name, kind, shape, multiply_adds, parameters, slopes, std)


def hours_by_arithmetic(multiply_adds: float, card: str) -> float:
    """Hours at SHARE of the card's matrix rate; a multiply-add is two operations."""
    return 2 * multiply_adds / (SHARE * CARDS[card]) / 3600


def basis(card: str) -> str:
    """What hours_by_arithmetic rests on, for a person."""
    rate = f"{CARDS[card] / 1e12:.0f} TFLOP/s that NVIDIA states for one {card}"
    return f"by arithmetic, not by measurement: {SHARE:.0%} of the {rate}"


@dataclass
class Cost:
    """What one process sends and keeps."""

    parallel: str
    bytes_sent: int  # a step, as rings send: gradients, and what the fc layers exchange
    bytes_kept: int  # weights, gradients and momentum, between steps


def costs(network: Description, num_processes: int, batch_size: int, precision: str) -> list[Cost]:
    """The costs of parallel=ddp and parallel=hybrid, by arithmetic.

    In a ring all-reduce of n bytes each process sends 2 (P-1)/P n, in a gather or a reduce-scatter
    half of that. Activations are sent in the arithmetic's type, or in fp32 where they are summed,
    and with each image its key for dropout.
    """
    fc1, fc2, fc3 = (layer for layer in network.layers if layer.kind == "fc")
    [features] = next(layer.shape for layer in network.layers if layer.kind == "spp")
    [hidden], [classes] = fc2.shape, fc3.shape
    per_image = 2 if precision in ("bf16", "fp16") else 4
    forward = per_image * features + 4 * (hidden + classes) + 8
    backward = 4 * features + per_image * (hidden + classes)
    slopes = sum(layer.slopes for layer in (fc1, fc2) if layer.slopes > 1)  # not one of a layer
    divided = sum(layer.parameters for layer in (fc1, fc2, fc3)) - classes + slopes  # not fc3.bias
    everything = network.parameters + network.slopes
    ring, kept = (num_processes - 1) / num_processes, 3 * _WEIGHT
    averaged = 2 * _WEIGHT * (everything - divided - classes)
    sent = ring * (averaged + batch_size * (forward + backward))
    rest = everything - divided
    return [
        Cost("ddp", round(2 * ring * everything * _WEIGHT), everything * kept),
        Cost("hybrid", round(sent), (rest + divided // num_processes) * kept),
    ]


def cost_table(costs: list[Cost]) -> str:
    """The costs for a person."""
    return "\n".join(
        f"parallel={cost.parallel:<7} sends {cost.bytes_sent / 1e6:9,.1f} MB a step, keeps "
        f"{cost.bytes_kept / 1e9:6.2f} GB (weights, gradients, momentum), each process"
        for cost in costs
    )


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
