"""What training with several processes sends and keeps, by arithmetic, for either `parallel=`."""

from dataclasses import dataclass

from models.describe import Description

_WEIGHT = 4  # bytes; weights, gradients and momentum are fp32 whatever the arithmetic


@dataclass
class Cost:
    """Of one process."""

    parallel: str
    bytes_sent: int  # a step, as rings send: gradients, and what the fc layers exchange
    bytes_kept: int  # weights, gradients and momentum, between steps


def costs(found: Description, processes: int, batch_size: int, precision: str) -> list[Cost]:
    """The costs of ddp and of hybrid (engine/hybrid.py).

    A ring all-reduce of n bytes sends 2 (P-1)/P n from each process, a gather or a summing scatter
    to n bytes half of it. Activations travel in the arithmetic's type, where they are added up in
    fp32; with each image its key for dropout.
    """
    fc1, fc2, fc3 = (layer for layer in found.layers if layer.kind == "fc")
    [features] = next(layer.shape for layer in found.layers if layer.kind == "spp")
    [hidden], [classes] = fc2.shape, fc3.shape
    per_image = 2 if precision in ("bf16", "fp16") else 4
    forward = per_image * features + 4 * (hidden + classes) + 8
    backward = 4 * features + per_image * (hidden + classes)
    slopes = sum(layer.slopes for layer in (fc1, fc2) if layer.slopes > 1)  # not one of a layer
    divided = sum(layer.parameters for layer in (fc1, fc2, fc3)) - classes + slopes  # not fc3.bias
    everything = found.parameters + found.slopes
    ring, kept = (processes - 1) / processes, 3 * _WEIGHT
    averaged = 2 * _WEIGHT * (everything - divided - classes)
    sent = ring * (averaged + batch_size * (forward + backward))
    rest = everything - divided
    return [
        Cost("ddp", round(2 * ring * everything * _WEIGHT), everything * kept),
        Cost("hybrid", round(sent), (rest + divided // processes) * kept),
    ]


def cost_table(found: list[Cost]) -> str:
    """The costs for a person."""
    return "\n".join(
        f"parallel={cost.parallel:<7} sends {cost.bytes_sent / 1e6:9,.1f} MB a step, keeps "
        f"{cost.bytes_kept / 1e9:6.2f} GB (weights, gradients, momentum), each process"
        for cost in found
    )
