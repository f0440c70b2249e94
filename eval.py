"""Test a trained network: `python eval.py checkpoint=runs/NAME/checkpoints/best.pt views=ten`."""

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py

import hydra
import torch
from omegaconf import DictConfig

from configs.errors import one_sentence
from configs.schema import EvalConfig, TrainConfig
from configs.store import from_dict, register, to_config, to_dict
from configs.validate import require, val_scale, validate_eval
from data.draws import centre_batches, subset
from data.index import ImageIndex, scan_folder
from data.load import load
from engine.checkpoint import load_checkpoint
from engine.distributed import World, open_world
from engine.precision import set_precision
from evaluation.errors import ErrorCounts
from evaluation.evaluate import Viewer, combine
from evaluation.result import count_errors, error_table, errors_entry, write_result
from models.network import build_network

register()


def load_viewer(config: EvalConfig, state: dict, run: TrainConfig, world: World) -> Viewer:
    """The checkpoint's network on the device, ready to be shown images."""
    precision = set_precision(config.precision or run.precision, world.device)
    network = build_network(run.model, run.act, run.init, len(state["classes"]), seed=None)
    network.load_state_dict(state["network"])
    network = network.to(world.device).to(memory_format=torch.channels_last)
    crop = run.data.crop
    return Viewer(
        network, state["mean"].to(world.device), precision, crop, config.views, config.square
    )


def evaluate(
    config: EvalConfig, viewer: Viewer, index: ImageIndex, scales: list[int], world: World
) -> dict[str, ErrorCounts]:
    """Errors at each scale, and of the scales combined under the name `combined`."""
    mine = subset(len(index), config.subset)[world.rank :: world.size]
    parts = []
    for scale in scales:
        draws = centre_batches(mine, scale, config.batch_size)
        batches = load(index, draws, None, config.loader, config.data.on_error, print)
        parts.append(viewer.predict(batches, len(index.classes)))
    named = {str(scale): part for scale, part in zip(scales, parts, strict=True)}
    named["combined"] = combine(parts)
    return {name: count_errors(part, world) for name, part in named.items()}


def run_eval(config: EvalConfig, world: World) -> None:
    """Load, evaluate, print the table, write the result file."""
    validate_eval(config)
    path = Path(str(config.checkpoint))
    state = load_checkpoint(path)
    run = from_dict(state["config"], TrainConfig)
    scales = config.scales or [val_scale(run.data)]
    require(
        min(scales) >= run.data.crop,
        f"scale {min(scales)} is smaller than the views of {run.data.crop} pixels",
    )
    index = scan_folder(config.data.root or run.data.root, "val", classes=state["classes"])
    viewer = load_viewer(config, state, run, world)
    errors = evaluate(config, viewer, index, scales, world)
    if not world.is_main:
        return
    print(f"{path}, views={config.views}, {errors['combined'].images} images")
    print(error_table(errors, len(state["classes"])))
    result = {
        "views": config.views,
        "scales": [{"scale": s, **errors_entry(errors[str(s)])} for s in scales],
        "combined": errors_entry(errors["combined"]),
        "images": errors["combined"].images,
        "checkpoints": [str(path)],
        "config": to_dict(config),
    }
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    how = [config.views, *(["square"] if config.square else []), *map(str, scales)]
    some = [f"first{config.subset}"] if config.subset else []
    name = "-".join(["result", path.stem, *how, *some]) + ".json"
    write_result(Path(config.out) if config.out else folder / name, result)


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(raw: DictConfig) -> None:
    """Compose, validate, evaluate."""
    with one_sentence():
        config = to_config(raw, EvalConfig)
        with open_world(config.device) as world:
            run_eval(config, world)


if __name__ == "__main__":
    main()
