"""What Sec. 2.2 states of initialisation, in closed form and as measured."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from analysis.propagation.study import ACTS, Results, Settings, typical, with_spread
from analysis.propagation.summary import span
from analysis.propagation.theory import conv_table, gain
from configs.schema import TrainConfig
from configs.store import compose_config
from models.network import build_network

NOT_RUN = "not run"
VGG = "vgg_b"  # the paper's example


@dataclass(frozen=True)
class Claim:
    """One statement, beside what follows from the equations and what was measured."""

    statement: str
    paper: str
    closed_form: str
    measured: str


def claims(results: Results, settings: Settings) -> list[Claim]:
    """All statements that a study can check; a model that is not in it leaves `not run`."""
    found = _deviations()
    found.append(_against_std_001(results))
    found += _absolute(results)
    for model in dict.fromkeys(settings.models):
        found += [_xavier(results, model, act) for act in ACTS]
    found += [_telescope(results, model) for model in dict.fromkeys(settings.models)]
    return found


def inits_agree(results: Results, model: str, act: str) -> float:
    """The largest relative difference of measured / predicted between two rules, any seed."""
    rules = [result for key, result in results.items() if key[:2] == (model, act)]
    worst = 0.0
    for direction in ("forward", "backward"):
        ratios = np.stack([rule.ratio(direction)[:, 1:] for rule in rules])
        worst = max(worst, float((ratios.max(axis=0) / ratios.min(axis=0) - 1).max()))
    return worst


def _deviations() -> list[Claim]:
    """Eq. 14's std in VGG model B, of the weights that the project draws."""
    config = compose_config([f"model={VGG}", "act=relu", "init=he"], TrainConfig)
    small = replace(config.model, fc=[1, 1])
    network = build_network(small, config.act, config.init, num_classes=1, seed=0)
    drawn: dict[int, list[Tensor]] = {}
    for module in network.trunk.modules():
        if isinstance(module, nn.Conv2d):
            drawn.setdefault(module.out_channels, []).append(module.weight.detach().flatten())
    printed = {64: "0.059", 128: "0.042", 256: "0.029", 512: "0.021"}
    return [
        Claim(
            f"VGG model B, ReLU: std of the {filters} filters by Eq. 14",
            paper,
            f"{math.sqrt(2 / (9 * filters)):.4f}",
            f"{torch.cat(drawn[filters]).std().item():.4f}",
        )
        for filters, paper in printed.items()
    ]


def _against_std_001(results: Results) -> Claim:
    """The gradient factor: prod of He's std / 0.01 over conv2 .. conv10."""
    config = compose_config([f"model={VGG}"], TrainConfig)
    stds = [math.sqrt(2 / conv.n_hat) for conv in conv_table(config.model)[1:]]
    factor = math.prod(std / 0.01 for std in stds)
    statement = "VGG model B, ReLU: std of the gradient from conv10 to conv2, std 0.01 against He"
    measured = NOT_RUN
    if (VGG, "relu", "he") in results:
        he, small = (results[VGG, "relu", rule].measured.backward for rule in ("he", "gaussian"))
        measured = f"1/({span(np.sqrt(he[:, 1] / small[:, 1]), '.1f')})"
    return Claim(statement, "1/(1.7e4)", f"1/{factor:.1f}", measured)


def _absolute(results: Results) -> list[Claim]:
    """The same gradient, for each of the two by itself: this is where pools and borders show."""
    found = []
    for init, name in (("he", "He"), ("gaussian", "std 0.01")):
        result = results.get((VGG, "relu", init))
        statement = f"VGG model B, ReLU: std of the gradient from conv10 to conv2, {name} alone"
        if result is None:
            found.append(Claim(statement, "", "", NOT_RUN))
            continue
        explained = typical(result.pools.backward)[1] * result.borders.backward[1]
        predicted = result.predicted.backward[1] ** 0.5
        closed = f"{predicted:.3g}; with pools and borders {(predicted**2 * explained) ** 0.5:.3g}"
        measured = with_spread(np.sqrt(result.measured.backward), 1)
        found.append(Claim(statement, "", closed, measured))
    return found


def _xavier(results: Results, model: str, act: str) -> Claim:
    result = results[model, act, "he_forward"]
    layers = len(result.table)
    ratio = gain(result.slope) ** (layers / 2)
    name = "ReLU" if act == "relu" else f"PReLU (a = {result.slope})"
    root = "1/sqrt(2)" if act == "relu" else "sqrt((1 + a²)/2)"
    xavier, he = (results[model, act, rule].measured.forward for rule in ("xavier", "he_forward"))
    return Claim(
        f"{model}, {name}: std of the last response, Xavier against He forward",
        f"1/sqrt(2)^{layers}" if act == "relu" else "",
        f"{root}^{layers} = {ratio:.4e}",
        span(np.sqrt(xavier[:, -1] / he[:, -1]), ".4e"),
    )


def _telescope(results: Results, model: str) -> Claim:
    """Eq. 14 instead of Eq. 10 costs the responses c_2 / d_L only, however deep the network."""
    table = results[model, "relu", "he"].table
    he, forward = (results[model, "relu", rule].measured.forward for rule in ("he", "he_forward"))
    ratio = (he[:, -1] / he[:, 0]) / (forward[:, -1] / forward[:, 0])
    return Claim(
        f"{model}, ReLU: Var[y_L] / Var[y_1], He backward against He forward",
        "c_2 / d_L",
        f"{table[1].channels}/{table[-1].filters} = {table[1].channels / table[-1].filters:.6f}",
        span(ratio, ".6f"),
    )
