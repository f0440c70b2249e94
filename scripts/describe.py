"""Layers, map sizes, multiply-adds, parameters and initial std of an architecture.

python scripts/describe.py model=C act=prelu [--json] [--processes 8] [--cost] [key of train.py]

--processes N: also what each of N processes sends in a step and keeps, for both `parallel=`.
--cost: GPU hours of the training on ImageNet.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.errors import one_sentence, refusing
from configs.schema import TrainConfig
from configs.store import compose_config
from configs.validate import validate
from models.describe import (
    Description,
    basis,
    cost_table,
    costs,
    describe,
    hours_by_arithmetic,
    table,
)


def cost(config: TrainConfig, network: Description) -> str:
    """GPU hours of the training on ImageNet, at the speed of runs so far or by arithmetic."""
    # Not above: these take a second to import.
    from analysis.report.runs import Edition, load
    from data.sources.imagenet import NUM_IMAGES
    from scripts.reproduction.cost import run_rates

    images = config.epochs * NUM_IMAGES["train"]
    name = Edition(scaled=False).model_label(config.model.name, config.model.extra_convs)
    if measured := run_rates(load(ROOT / "results")).get(name):
        hours, how = images / measured.images_per_second / 3600, f"({measured.source})"
    else:
        hours, how = hours_by_arithmetic(3 * network.multiply_adds * images, "H100"), basis("H100")
    return f"{config.epochs} epochs, {images:,} images: {hours:,.1f} GPU hours {how}"


def main(arguments: list[str]) -> None:
    """Print the description of the network that train.py would build with these arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--processes", type=int, default=1, help="what each of these sends and keeps"
    )
    parser.add_argument("--cost", action="store_true", help="GPU hours of the training")
    options, overrides = parser.parse_known_args(arguments)
    with one_sentence(), refusing(ValueError):
        print(description(options, overrides))


def description(options: argparse.Namespace, overrides: Sequence[str]) -> str:
    """What the options ask for, about the network that train.py would build with these keys."""
    config = compose_config(overrides, TrainConfig)
    config.parallel = "hybrid"  # to check its requirements too
    validate(config, options.processes)

    num_classes = config.data.num_classes or 1000
    network = describe(
        config.model, config.act, config.init, num_classes=num_classes, crop=config.data.crop
    )
    processes = costs(network, options.processes, config.batch_size, config.precision)
    if options.json:
        values = {"model": config.model.name, "crop": config.data.crop, **asdict(network)}
        if options.processes > 1:
            values["parallel"] = [asdict(cost) for cost in processes]
        return json.dumps(values)
    names = f"model {config.model.name}, act {config.act.name}, init {config.init.name}"
    lines = [f"{names}, one {config.data.crop} x {config.data.crop} image", table(network)]
    if options.cost:
        lines.append(cost(config, network))
    if options.processes > 1:
        how = f"{options.processes} processes, batch {config.batch_size}, {config.precision}:"
        lines += [how, cost_table(processes)]
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
