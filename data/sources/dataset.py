"""Opens the data set that a configuration names."""

from dataclasses import dataclass
from pathlib import Path

from configs.schema import DataConfig
from data.sources.cache import OnProgress
from data.sources.index import ImageIndex, check_dataset, scan_folder
from data.synthetic import make_synthetic


@dataclass(frozen=True)
class Dataset:
    """Training and validation images with a common class order."""

    train: ImageIndex
    val: ImageIndex
    num_classes: int


def open_dataset(data: DataConfig, on_progress: OnProgress) -> Dataset:
    """The data set at data.root; the embedded one is generated on first use.

    on_progress is called now and then while a large set is being listed for the first time.

    Raises UserError for a root that is missing, empty, inconsistent or of another class count.
    """
    if data.name == "synthetic":
        make_synthetic(Path(data.root))
    train = scan_folder(data.root, "train", on_progress=on_progress)
    val = scan_folder(data.root, "val", train.classes, on_progress)
    return Dataset(train, val, check_dataset(train, val, data.num_classes))
