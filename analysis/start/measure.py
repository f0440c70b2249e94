"""Trains a network for its first steps, as train.py does, and measures every layer."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.start.curvature import curvature
from analysis.start.record import Case, Curvature, Layer, Probe, Record
from analysis.start.remedies import REMEDIES, scale_inputs, scale_weights
from configs.schema import TrainConfig
from data.loading import Batch
from data.normalise import load_mean, network_input
from engine.distributed import World
from engine.optim import build_optimizer, set_learning_rate
from engine.parallel import open_parallel
from engine.precision import set_precision
from engine.step import StepResult, TrainingStep
from models.learned import layer_before
from models.network import Network, build_network

_LOST = 100.0  # a loss above it does not come back
_NUM_PROBES = 20  # of the first steps, and about as many of the later ones
_ITERATIONS = 6  # of power iteration


def measure(
    case: Case,
    config: TrainConfig,
    batches: Iterator[Batch],
    *,
    steps: int,
    device: torch.device,
    curvature_images: int,
    on_step: Callable[[float], object],
) -> Record:
    """Train for `steps` steps, or until the loss is lost; on_step gets the loss of each.

    curvature_images: of a batch, for the curvature before steps 1 and 2 and at the end; 0: none.
    """
    remedy = REMEDIES[case.remedy]
    network, step = _build(case, config, device)
    record, probe = Record(case, steps), _NetworkProbe(network)
    previous = torch.empty(0)  # labels of the step before
    for number, batch in enumerate(batches, 1):
        set_learning_rate(step.optimizer, case.rate * remedy.rate_factor(number))
        if number == 2 and record.probes:
            scale = record.rate(1) * record.kernel(0)
            record.second = predicted_second(scale, previous, batch.labels, case.num_classes)
        previous = batch.labels
        if curvature_images and number in (1, 2, steps):
            along, largest = _curvature(network, step, batch, curvature_images)
            record.curvature.append(Curvature(number, curvature_images, along, largest))
        every = -(-steps // _NUM_PROBES)
        is_probed = number <= _NUM_PROBES or number % every == 0 or number == steps
        result = probe.during(partial(step, batch)) if is_probed else step(batch)
        loss, norm = float(result.loss), float(result.gradient_norm)
        record.losses.append(loss)
        record.norms.append(norm)
        on_step(loss)
        if not (math.isfinite(loss) and math.isfinite(norm)) or loss > _LOST:
            break
        if is_probed:
            record.probes.append(Probe(number, probe.layers(record.clip_factor(number))))
    return record


def _build(case: Case, config: TrainConfig, device: torch.device) -> tuple[Network, TrainingStep]:
    """The network and its step as train.py builds them, with the remedy's changes."""
    remedy = REMEDIES[case.remedy]
    network = build_network(
        config.model,
        config.act,
        config.init,
        num_classes=case.num_classes,
        dropout=config.dropout,
        seed=case.seed,
    )
    scale_weights(network, remedy.weight_factor)
    scale_inputs(network, remedy.input_factor)
    network = network.to(device).to(memory_format=torch.channels_last)
    parallel = open_parallel("ddp", World(0, 1, device))
    step = TrainingStep(
        network,
        build_optimizer(network, config),
        load_mean(config.data.mean).to(device),
        set_precision(config.precision, device),
        config.images_at_once(1),
        gradient_norm=partial(parallel.gradient_norm, network),
        clip_norm=config.clip_norm,
    )
    return network, step


def predicted_second(scale: float, first: Tensor, second: Tensor, num_classes: int) -> float:
    """Loss of the second batch if all images had the same features and p were 1 / K.

    scale: rate * k. Step 1 then moves the logit of class c, for every image, by
    rate * k * (n_c / B - 1 / K), where n_c of the first batch's B labels are c.
    """
    counts = torch.bincount(first, minlength=num_classes).double()
    logits = scale * (counts / len(first) - 1 / num_classes)
    return float(torch.logsumexp(logits, 0) - logits[second].mean())


def _curvature(
    network: Network, step: TrainingStep, batch: Batch, images: int
) -> tuple[float, float]:
    """In fp32, with the dropout masks of the step."""
    parameters = list(network.parameters())
    device = step.mean.device
    parts = [batch.images, batch.colours, batch.keys, batch.labels]
    pixels, colours, keys, labels = [part[:images].to(device) for part in parts]
    inputs = network_input(pixels, step.mean, colours)
    return curvature(
        lambda: F.cross_entropy(network(inputs, keys), labels), parameters, _ITERATIONS
    )


class _FeatureSums:
    """Sums over a layer's features, collected over the rounds of a step."""

    def __init__(self) -> None:
        self.num_images, self.squares = 0, 0.0
        self.total = torch.zeros(())  # becomes [C, ...]
        self.alive = torch.zeros((), dtype=torch.bool)  # becomes [C]

    def add(self, features: Tensor) -> None:
        """features [B, C, ...]."""
        x = features.detach().float()
        self.num_images += len(x)
        self.squares += float(x.square().sum(dtype=torch.float64))
        self.total = self.total + x.sum(0)
        self.alive = self.alive | (x > 0).transpose(0, 1).flatten(1).any(1)

    def numbers(self) -> tuple[float, float, float]:
        """(rms, fraction of dead units, fraction of the energy common to all images)."""
        mean_square = self.squares / (self.num_images * self.total.numel())
        # Over all pairs of two images: the mean of their products, over the mean square.
        products = float(self.total.square().sum(dtype=torch.float64)) - self.squares
        common = products / max(1, self.num_images - 1) / max(self.squares, 1e-300)
        return mean_square**0.5, 1 - float(self.alive.float().mean()), common


class _NetworkProbe:
    """Measures every weight layer of a network during a step."""

    def __init__(self, network: Network) -> None:
        self.weights: dict[str, nn.Parameter] = {}
        self.sums: dict[str, _FeatureSums] = {}
        self.before: dict[str, Tensor] = {}
        self.is_on = False
        for path, module in network.named_modules():
            name = path.rsplit(".", 1)[-1]
            if isinstance(module, nn.Conv2d | nn.Linear):
                assert isinstance(module.weight, nn.Parameter)
                self.weights[name] = module.weight
            if name.startswith("rect") or name == "fc3":
                module.register_forward_hook(partial(self._hook, layer_before(path)))

    def _hook(self, layer: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        if self.is_on:
            self.sums[layer].add(output)

    def during(self, step: Callable[[], StepResult]) -> StepResult:
        """Do the step, and measure."""
        self.sums = {name: _FeatureSums() for name in self.weights}
        self.before = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.is_on = True
        try:
            return step()
        finally:
            self.is_on = False

    def layers(self, clip_factor: float) -> list[Layer]:
        """What was measured; clip_factor: by which the gradients have been scaled."""
        layers = []
        for name, weight in self.weights.items():
            assert weight.grad is not None
            before = self.before[name]
            rms, dead, common = self.sums[name].numbers()
            layers.append(
                Layer(
                    name,
                    rms=rms,
                    dead=dead,
                    common=common,
                    weight=float(before.norm()),
                    gradient=float(weight.grad.norm() / clip_factor),
                    update=float((weight.detach() - before).norm()),
                )
            )
        return layers
