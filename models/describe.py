"""An architecture layer by layer: map sizes, multiply-adds, parameters, initial std."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from configs.schema import ActConfig, InitConfig, ModelConfig
from models.architecture import PoolLayer, map_side, num_features, trunk_layers
from models.init import conv_std

# Operations per second in dense bf16 matrix products, as NVIDIA states them, and the share of them
# that we assume a network reaches. The share has not been measured.
CARDS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
SHARE = 0.4

_WEIGHT = 4  # bytes; weights, gradients and momentum are fp32 at any precision


@dataclass
class Layer:
    """One layer and its cost for one image."""

    name: str
    kind: str  # conv | pool | spp | fc
    shape: list[int]  # of the output: [C, h, w] or [features]
    multiply_adds: int = 0  # conv and fc: one per weight and output position
    parameters: int = 0  # weights and biases
    slopes: int = 0  # learned slopes of the rectifier that follows
    std: float | None = None  # initial standard deviation of the weights


@dataclass
class Description:
    """The layers of a network and their totals."""

    layers: list[Layer]
    weight_layers: int
    multiply_adds: int
    parameters: int  # weights and biases of conv and fc layers
    slopes: int  # learned slopes, not counted among the parameters


def describe(
    model: ModelConfig, act: ActConfig, init: InitConfig, num_classes: int, crop: int
) -> Description:
    """The layers of a network for a crop x crop image, without building it.

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


def _trunk(model: ModelConfig, act: ActConfig, init: InitConfig, crop: int) -> Iterator[Layer]:
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
            yield _weight_layer(
                layer.name,
                "conv",
                [channels, side, side],
                fan_in=layer.fan_in,
                slopes=act.num_slopes(channels),
                std=conv_std(layer.fan_in, layer.fan_out, init, act.slope),
            )


def _head(
    model: ModelConfig, act: ActConfig, init: InitConfig, num_classes: int
) -> Iterator[Layer]:
    features = num_features(model)
    yield Layer("spp", "spp", [features])
    widths = [*model.fc, num_classes]
    for i, (width, std) in enumerate(zip(widths, init.fc_std, strict=True), 1):
        slopes = act.num_slopes(width) if i < len(widths) else 0  # no rectifier after fc3
        yield _weight_layer(f"fc{i}", "fc", [width], fan_in=features, slopes=slopes, std=std)
        features = width


def _weight_layer(
    name: str, kind: str, shape: list[int], *, fan_in: int, slopes: int, std: float
) -> Layer:
    weights = fan_in * shape[0]
    multiply_adds, parameters = weights * math.prod(shape[1:]), weights + shape[0]
    return Layer(name, kind, shape, multiply_adds, parameters, slopes, std)


def hours_by_arithmetic(multiply_adds: float, card: str) -> float:
    """Hours at SHARE of the card's rate; a multiply-add is two operations."""
    return 2 * multiply_adds / (SHARE * CARDS[card]) / 3600


def basis(card: str) -> str:
    """How hours_by_arithmetic is computed, in words."""
    rate = f"{CARDS[card] / 1e12:.0f} TFLOP/s that NVIDIA states for one {card}"
    return f"by arithmetic, not by measurement: {SHARE:.0%} of the {rate}"


@dataclass
class Cost:
    """What one process sends in a step and keeps between steps."""

    parallel: str
    bytes_sent: int  # by ring collectives: gradients, and what the fc layers exchange
    bytes_kept: int  # weights, gradients and momentum


def costs(network: Description, num_processes: int, batch_size: int, precision: str) -> list[Cost]:
    """The costs of parallel=ddp and parallel=hybrid, by arithmetic.

    In a ring all-reduce of n bytes each process sends 2 (P-1)/P n, in an all-gather or a
    reduce-scatter half of that. Activations are sent at `precision`, or in fp32 if they are summed;
    each image's dropout key is sent too.
    """
    fc1, fc2, fc3 = (layer for layer in network.layers if layer.kind == "fc")
    [features] = next(layer.shape for layer in network.layers if layer.kind == "spp")
    [hidden], [classes] = fc2.shape, fc3.shape
    activation = 2 if precision in ("bf16", "fp16") else 4  # bytes
    forward = activation * features + 4 * (hidden + classes) + 8  # bytes per image
    backward = 4 * features + activation * (hidden + classes)
    slopes = sum(layer.slopes for layer in (fc1, fc2) if layer.slopes > 1)  # a single one is whole
    divided = sum(layer.parameters for layer in (fc1, fc2, fc3)) - classes + slopes  # not fc3.bias
    total = network.parameters + network.slopes
    whole = total - divided
    ring, kept = (num_processes - 1) / num_processes, 3 * _WEIGHT
    averaged = 2 * _WEIGHT * (whole - classes)
    sent = ring * (averaged + batch_size * (forward + backward))
    return [
        Cost("ddp", round(2 * ring * total * _WEIGHT), total * kept),
        Cost("hybrid", round(sent), (whole + divided // num_processes) * kept),
    ]


def cost_table(costs: list[Cost]) -> str:
    """The costs as text, a line each."""
    return "\n".join(
        f"parallel={cost.parallel:<7} sends {cost.bytes_sent / 1e6:9,.1f} MB a step, keeps "
        f"{cost.bytes_kept / 1e9:6.2f} GB (weights, gradients, momentum), each process"
        for cost in costs
    )


def table(description: Description) -> str:
    """The description as text: a line per layer, then the totals."""
    rows = [["layer", "output", "multiply-adds", "parameters", "slopes", "weight std"]]
    for layer in description.layers:
        shape = " x ".join(map(str, layer.shape))
        std = "" if layer.std is None else f"{layer.std:.4f}"
        counts = (layer.multiply_adds, layer.parameters, layer.slopes)
        rows.append([layer.name, shape, *(f"{n:,}" if n else "" for n in counts), std])
    totals = (description.multiply_adds, description.parameters, description.slopes)
    name = f"{description.weight_layers} weight layers"
    rows.append([name, "", *(f"{total:,}" for total in totals), ""])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
