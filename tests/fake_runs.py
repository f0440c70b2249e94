"""Run folders as train.py and eval.py leave them, with made-up numbers for tests of the report."""

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
    """A run after `done` epochs, of a scaled run steps (None: all); returns its folder."""
    config = composed(f"experiment={experiment}", f"seed={seed}", f"runs={runs}", *overrides)
    folder = runs / config.name
    (folder / "checkpoints").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(to_dict(config)), folder / "config.yaml")
    scaled = experiment.startswith("scaled-")
    length = config.max_steps if scaled else config.epochs
    done = length if done is None else done
    per_unit = 1 if scaled else 1_281_167 / config.batch_size
    if scaled:
        logged_steps = range(50, done + 1, 50)
    elif config.val_every:
        logged_steps = range(500, int(done * per_unit) + 1, 500)
    else:
        logged_steps = [int((epoch + 1) * per_unit) for epoch in range(done)]
    first, last = curve
    lines: list[dict[str, Any]] = []
    for step in logged_steps:
        error = last + (first - last) * np.exp(-5 * step / (length * per_unit))
        speed = {"images_per_second": 400.0, "data_wait": 0.01}
        time = {"step": step, "epoch": 0 if scaled else int((step - 1) / per_unit)}
        lines.append({"kind": "train", **time, "loss": error / 15, "lr": 0.01, **speed})
        errors = {"top1_error": error, "top5_error": error / 2, "images": 50_000}
        lines.append({"kind": "val", **time, **errors})
    _append_lines(folder, lines)
    steps = lines[-1]["step"] if lines else 0
    epochs = 0 if scaled else done
    progress = {"step": steps, "validated": steps, "val_errors": [50.0] * epochs}
    network = {CONV1: torch.linspace(-1, 1, 64 * 3 * 49).reshape(64, 3, 7, 7)}
    for index, layer in enumerate(SLOPES):
        part = "head" if layer.startswith("fc") else "trunk"
        name = layer.replace("conv", "rect").replace("fc", "rect")
        spread = torch.linspace(-0.3, 0.3, 64) if config.act.name == "prelu" else torch.zeros(1)
        network[f"{part}.{name}.slopes"] = slope / (1 + index) + spread
    state = {"format": FORMAT, "progress": progress, "network": network, "classes": CLASSES}
    torch.save(state, folder / "checkpoints" / "last.pt")
    return folder


def add_gradients(folder: Path, layers: dict[str, tuple[float, float]], last: int) -> None:
    """Gradient norms by layer, at step 10 and at the last step."""
    for index, step in enumerate((10, last)):
        norms = {layer: pair[index] for layer, pair in layers.items()}
        _append_lines(folder, [{"kind": "gradients", "step": step, "norms": norms}])


def add_slopes(folder: Path, means: dict[int, float]) -> None:
    """Statistics of the slopes, equal in all layers: their mean by step."""
    for step, mean in means.items():
        quantiles = [mean + shift / 10 for shift in range(-3, 4)]
        slopes = {"mean": mean, "quantiles": quantiles, "count": 64}
        layers = dict.fromkeys(SLOPES, slopes)
        _append_lines(folder, [{"kind": "slopes", "step": step, "layers": layers}])


def _append_lines(folder: Path, lines: list[dict[str, Any]]) -> None:
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def make_result(
    folder: Path,
    test: Test,
    wrong: dict[int | None, tuple[int, int]],
    *,
    images: int = 50_000,
    checkpoints: list[str] | None = None,
    per_class: list[dict[str, Any]] | None = None,
    **config: Any,
) -> None:
    """Write a test's result file; wrong: images, top-1 and top-5, by scale (None: combined)."""

    def entry(scale: int | None) -> dict[str, Any]:
        top1, top5 = wrong[scale]
        return {
            "top1_error": 100 * top1 / images,
            "top5_error": 100 * top5 / images,
            "top1_interval": list(interval(top1, images)),
            "top5_interval": list(interval(top5, images)),
        }

    defaults = {"average": "probabilities", "square": False, "on_map": False, "weights": None}
    result = {
        "views": test.views,
        "scales": [{"scale": scale, **entry(scale)} for scale in test.scales if scale in wrong],
        "combined": entry(None),
        "images": images,
        "checkpoints": checkpoints or [str(folder / "checkpoints" / "last.pt")],
        "per_class": per_class or [],
        "commit": "c" * 40,
        "config": {**defaults, "subset": test.subset, "split": "val", **config},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"result-{test.name}.json").write_text(json.dumps(result))


def make_ensemble(runs: Path, test: Test, wrong: tuple[int, int], **more: Any) -> None:
    """The result of the six models of Table 7 together."""
    names = [f"{experiment}-imagenet-seed{seed}" for experiment, seed in ENSEMBLE_MEMBERS]
    files = [str(runs / name / "predictions-dense.npz") for name in names]
    make_result(runs / "ensemble-imagenet", test, {None: wrong}, checkpoints=files, **more)


def class_rows(seed: int, mean: float) -> list[dict[str, Any]]:
    """Errors of a thousand classes of 50 images each."""
    wrong = np.random.default_rng(seed).binomial(50, np.linspace(0, 2 * mean / 100, 1000) ** 1.5)
    return [
        {
            "class": name,
            "words": f"thing {index}, Res {index}",
            "images": 50,
            "top1_error": 2.0 * min(50, 3 * int(count)),
            "top5_error": 2.0 * int(count),
        }
        for index, (name, count) in enumerate(zip(CLASSES, wrong, strict=True))
    ]
