"""Run folders as train.py and eval.py leave them, with numbers made up for tests of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from analysis.report.paper import ENSEMBLE_MEMBERS, SLOPES, Test
from configs.store import to_dict
from engine.checkpoint import FORMAT
from evaluation.metrics import interval
from models.learned import CONV1
from tests.conftest import composed

CLASSES = [f"n{number:08d}" for number in range(1000)]


def make_run(
    runs: Path,
    experiment: str,
    *overrides: str,
    seed: int = 0,
    done: int | None = None,
    curve: tuple[float, float] = (99.0, 30.0),
    slope: float = 0.2,
) -> Path:
    """A run through `done` epochs, of scaled runs steps (None: all); returns its folder."""
    config = composed(f"experiment={experiment}", f"seed={seed}", f"runs={runs}", *overrides)
    folder = runs / config.name
    (folder / "checkpoints").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(to_dict(config)), folder / "config.yaml")
    scaled = experiment.startswith("scaled-")
    whole = config.max_steps if scaled else config.epochs
    count = whole if done is None else done
    per_unit = 1 if scaled else 1_281_167 / config.batch_size
    if scaled:
        places = range(50, count + 1, 50)
    elif config.val_every:
        places = range(500, int(count * per_unit) + 1, 500)
    else:
        places = [int((epoch + 1) * per_unit) for epoch in range(count)]
    first, last = curve
    total = whole * per_unit
    lines: list[dict[str, Any]] = []
    for step in places:
        error = last + (first - last) * np.exp(-5 * step / total)
        speed = {"images_per_second": 400.0, "data_wait": 0.01}
        facts = {"step": step, "epoch": 0 if scaled else int((step - 1) / per_unit)}
        lines.append({"kind": "train", **facts, "loss": error / 15, "lr": 0.01, **speed})
        errors = {"top1_error": error, "top5_error": error / 2, "images": 50_000}
        lines.append({"kind": "val", **facts, **errors})
    steps = lines[-1]["step"] if lines else 0
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    ends = 0 if scaled else count
    progress = {"step": steps, "validated": steps, "val_errors": [50.0] * ends}
    network = {CONV1: torch.linspace(-1, 1, 64 * 3 * 49).reshape(64, 3, 7, 7)}
    for place, layer in enumerate(SLOPES):
        part = "head" if layer.startswith("fc") else "trunk"
        name = layer.replace("conv", "rect").replace("fc", "rect")
        spread = torch.linspace(-0.3, 0.3, 64) if config.act.name == "prelu" else torch.zeros(1)
        network[f"{part}.{name}.slopes"] = slope / (1 + place) + spread
    state = {"format": FORMAT, "progress": progress, "network": network, "classes": CLASSES}
    torch.save(state, folder / "checkpoints" / "last.pt")
    return folder


def add_gradients(folder: Path, layers: dict[str, tuple[float, float]], last: int) -> None:
    """Gradient norms at step 10 and at the last step, by layer."""
    with open(folder / "metrics.jsonl", "a") as file:
        for place, step in enumerate((10, last)):
            norms = {layer: pair[place] for layer, pair in layers.items()}
            file.write(json.dumps({"kind": "gradients", "step": step, "norms": norms}) + "\n")


def add_slopes(folder: Path, means: dict[int, float]) -> None:
    """Distributions of the slopes at some steps, of all layers alike."""
    with open(folder / "metrics.jsonl", "a") as file:
        for step, mean in means.items():
            quantiles = [mean + shift / 10 for shift in range(-3, 4)]
            layer = {"mean": mean, "quantiles": quantiles, "count": 64}
            layers = dict.fromkeys(SLOPES, layer)
            file.write(json.dumps({"kind": "slopes", "step": step, "layers": layers}) + "\n")


def make_result(
    folder: Path,
    test: Test,
    wrong: dict[int | None, tuple[int, int]],
    *,
    images: int = 50_000,
    checkpoints: list[str] | None = None,
    per_class: list[dict[str, Any]] | None = None,
    commit: str | None = "c" * 40,
    **config: Any,
) -> dict[str, Any]:
    """The result file of a test; wrong: images by scale (None: combined), top-1 and top-5."""

    def entry(scale: int | None) -> dict[str, Any]:
        top1, top5 = wrong[scale]
        return {
            "top1_error": 100 * top1 / images,
            "top5_error": 100 * top5 / images,
            "top1_interval": list(interval(top1, images)),
            "top5_interval": list(interval(top5, images)),
        }

    usual = {"average": "probabilities", "square": False, "on_map": False, "weights": None}
    how = {**usual, "subset": test.subset, "split": "val", **config}
    result = {
        "views": test.views,
        "scales": [{"scale": s, **entry(s)} for s in test.scales if s in wrong],
        "combined": entry(None),
        "images": images,
        "checkpoints": checkpoints or [str(folder / "checkpoints" / "last.pt")],
        "per_class": per_class or [],
        "commit": commit,
        "config": how,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"result-{test.name}.json").write_text(json.dumps(result))
    return result


def make_ensemble(runs: Path, test: Test, wrong: tuple[int, int], **more: Any) -> Path:
    """The result of the six models of Table 7 together."""
    names = [f"{experiment}-imagenet-seed{seed}" for experiment, seed in ENSEMBLE_MEMBERS]
    files = [str(runs / name / "predictions-dense.npz") for name in names]
    folder = runs / "ensemble-imagenet"
    make_result(folder, test, {None: wrong}, checkpoints=files, **more)
    return folder


def class_rows(seed: int, mean: float) -> list[dict[str, Any]]:
    """Errors of a thousand classes of 50 images."""
    wrong = np.random.default_rng(seed).binomial(50, np.linspace(0, 2 * mean / 100, 1000) ** 1.5)
    return [
        {
            "class": name,
            "words": f"thing {place}, Res {place}",
            "images": 50,
            "top1_error": 2.0 * min(50, 3 * int(count)),
            "top5_error": 2.0 * int(count),
        }
        for place, (name, count) in enumerate(zip(CLASSES, wrong, strict=True))
    ]
