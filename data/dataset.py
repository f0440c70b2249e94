"""Opens the data set that a configuration names."""

from dataclasses import dataclass
from pathlib import Path

from configs.schema import DataConfig
from data.index import ImageIndex, check_dataset, scan_folder
from data.synthetic import make_synthetic


@dataclass(frozen=True)
class Dataset:
    """Training and validation images with a common class order."""

    train: ImageIndex
    val: ImageIndex
    num_classes: int


def open_dataset(data: DataConfig) -> Dataset:
    """The data set at data.root; the embedded one is generated on first use.

    Raises UserError for a root that is missing, empty, inconsistent or of another class count.
    """
    if data.name == "synthetic":
        make_synthetic(Path(data.root))
    train = scan_folder(data.root, "train")
    val = scan_folder(data.root, "val", classes=train.classes)
    return Dataset(train, val, check_dataset(train, val, data.num_classes))
