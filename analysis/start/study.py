"""The first steps of networks on images of any folder; only missing records are measured."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from analysis.start.measure import measure
from analysis.start.record import Case, Record, read_record, write_record
from analysis.start.remedies import DEFAULT, LETTER, REMEDIES
from common.errors import UserError
from configs.schema import TrainConfig
from configs.store import compose_config
from configs.validate import one_of, validate
from data.draws import training_batches
from data.loading import load
from data.sources.index import ImageIndex, scan_folder


@dataclass(frozen=True)
class Settings:
    """What is measured: every combination of the first five, each for `steps` steps."""

    data: str  # an image folder
    models: Sequence[str] = ("small14",)
    acts: Sequence[str] = ("relu", "prelu")
    inits: Sequence[str] = ("he",)
    remedies: Sequence[str] = (LETTER, DEFAULT)
    seeds: Sequence[int] = (0, 1)
    steps: int = 20
    curvature_images: int = 32  # of a batch, for the first seed's curvature; 0: none
    device: str = "cpu"
    overrides: Sequence[str] = ()  # further keys of train.py


def study(settings: Settings, folder: Path) -> list[Record]:
    """Measure the cases without a record of enough steps in `folder`; returns all cases' records.

    Raises UserError for an unknown choice or what train.py would refuse.
    """
    for remedy in settings.remedies:
        one_of("--remedies", remedy, list(REMEDIES))
    if settings.steps < 2 or settings.curvature_images < 0:
        raise UserError("--steps must be at least 2, --curvature-images not negative")
    index = scan_folder(settings.data, "train")
    cases = []
    for model, act, init, seed, remedy in product(
        settings.models, settings.acts, settings.inits, settings.seeds, settings.remedies
    ):
        network = [f"model={model}", f"act={act}", f"init={init}", f"seed={seed}"]
        data = ["data=folder", f"data.root={settings.data}"]
        keys = [*network, *data, *settings.overrides, *REMEDIES[remedy].overrides]
        config = compose_config(keys, TrainConfig)
        validate(config, 1)
        cases.append((_case(settings, index, config, remedy), config))
    records = []
    for case, config in cases:
        path = folder / f"{case.name}.json"
        record = read_record(path) if path.is_file() else None
        if record is None or record.asked < settings.steps or record.case != case:
            record = _measure(settings, case, config, index)
            write_record(record, folder)
        print(f"{case.name}: {summary(record)}", flush=True)
        records.append(record)
    return records


def summary(record: Record) -> str:
    """One line for a person."""
    text = f"highest loss {record.highest:.4g}, last {record.losses[-1]:.4g}"
    return f"{text}, stopped at step {len(record.losses)}" if record.diverged else text


def _case(settings: Settings, index: ImageIndex, config: TrainConfig, remedy: str) -> Case:
    return Case(
        model=config.model.name,
        act=config.act.name,
        init=config.init.name,
        remedy=remedy,
        seed=config.seed,
        data=Path(settings.data).name,
        num_classes=len(index.classes),
        num_images=len(index),
        crop=config.data.crop,
        scale=list(config.data.scale_range),
        batch_size=config.batch_size,
        precision=config.precision,
        rate=config.schedule.rates[0],
        momentum=config.momentum,
        width=config.model.fc[1],
        clip_norm=config.clip_norm,
        overrides=[key for key in settings.overrides if not key.startswith(("loader", "micro"))],
    )


def _measure(settings: Settings, case: Case, config: TrainConfig, index: ImageIndex) -> Record:
    low, high = case.scale
    draws = training_batches(case.seed, 0, settings.steps, case.batch_size, len(index), (low, high))
    batches = load(
        index,
        draws,
        crop=case.crop,
        loader=config.loader,
        on_error="stop",
        on_event=tqdm.write,
    )
    images = settings.curvature_images if case.seed == settings.seeds[0] else 0
    bar = tqdm(total=settings.steps, desc=case.name, unit="step", disable=not sys.stderr.isatty())

    def on_step(loss: float) -> None:
        bar.update()
        bar.set_postfix(loss=f"{loss:.4g}")

    try:
        device = torch.device(settings.device)
        return measure(
            case,
            config,
            batches,
            steps=settings.steps,
            device=device,
            curvature_images=images,
            on_step=on_step,
        )
    finally:
        bar.close()
        batches.close()
