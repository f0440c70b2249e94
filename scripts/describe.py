"""Layers, map sizes, multiply-adds, parameters and start deviations of an architecture.

python scripts/describe.py model=C act=prelu [--json] [any key of train.py]
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs.errors import one_sentence, refusing
from configs.schema import TrainConfig
from configs.store import compose_config
from models.describe import describe, table


def main(arguments: list[str]) -> None:
    """Print the description of the network that train.py would build with these arguments."""
    overrides = [argument for argument in arguments if argument != "--json"]
    with one_sentence(), refusing(ValueError):
        config = compose_config(overrides, TrainConfig)
        parts = (config.model, config.act, config.init)
        found = describe(*parts, config.data.num_classes or 1000, config.data.crop)
    if "--json" in arguments:
        print(json.dumps({"model": config.model.name, "crop": config.data.crop, **asdict(found)}))
    else:
        print(
            f"model {config.model.name}, act {config.act.name}, init {config.init.name}, ", end=""
        )
        print(f"one {config.data.crop} x {config.data.crop} image")
        print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
