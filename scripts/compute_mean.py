"""The mean image of a training set, for data.mean=FILE (Sec. 3: "per-pixel mean subtracted").

python scripts/compute_mean.py data=imagenet data.root=/imagenet [--out FILE] [any key of train.py]

The result is the same with any number of workers.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
from torch import Tensor
from tqdm import tqdm

from configs.errors import one_sentence, refusing
from configs.schema import TrainConfig
from configs.store import compose_config
from configs.validate import val_scale, validate
from data.batch import Batch
from data.dataset import open_dataset
from data.draws import centre_batches
from data.index import ImageIndex
from data.load import load
from data.mean import mean_image
from engine.checkpoint import write_atomically

_BATCH = 64


def compute_mean(config: TrainConfig, train: ImageIndex) -> Tensor:
    """Mean [crop, crop, 3] of the centre crops of all images, float32 grey levels."""
    data = config.data
    indices = np.arange(len(train))
    draws = centre_batches(indices, val_scale(data), _BATCH)
    batches = load(train, draws, data.crop, config.loader, data.on_error, _note)
    with closing(batches):
        return mean_image(_counted(batches, len(indices)))


def _note(event: str) -> None:
    tqdm.write(event, file=sys.stderr)


def _counted(batches: Iterator[Batch], num_images: int) -> Iterator[Batch]:
    with tqdm(total=num_images, desc="mean image", unit="img", disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch.labels))


def save(mean: Tensor, path: Path) -> None:
    """Write the .npy file in one step. Raises UserError if it cannot be written."""
    with refusing(OSError, what=f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.save(file, mean.numpy(), allow_pickle=False))


def main() -> None:
    """Compute and save the mean image of the training set that these arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="default: datasets/mean-DATA-CROP.npy")
    arguments, overrides = parser.parse_known_args()
    with one_sentence():
        config = compose_config(overrides, TrainConfig)
        validate(config, num_processes=1)
        data = config.data
        out = arguments.out or Path("datasets") / f"mean-{data.name}-{data.crop}.npy"
        mean = compute_mean(config, open_dataset(data).train)
        save(mean, out)
    colour = ", ".join(f"{level:.3f}" for level in mean.mean((0, 1)).tolist())
    print(f"mean RGB {colour}: to use the image, type data.mean={out}")


if __name__ == "__main__":
    main()
