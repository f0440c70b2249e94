"""Which images eval.py looks at: of validation, the unlabelled ones, or a person's own."""

import os
from pathlib import Path

import numpy as np

from common.errors import UserError, refusing
from configs.schema import EvalConfig
from configs.validate import require
from data.sources.cache import OnProgress, no_report
from data.sources.folders import images_in, is_image, refuse_closed
from data.sources.imagenet import DEVKIT, open_devkit
from data.sources.index import ImageIndex, class_names, scan_folder
from evaluation.submission import submission_ids


def open_images(
    config: EvalConfig, root: str, classes: list[str], on_progress: OnProgress = no_report
) -> ImageIndex:
    """The images that the configuration asks for; `classes` are those the network knows.

    Raises UserError if there are none, if the validation images have other classes, or if no
    submission could be made of the test images.
    """
    if config.images is not None:
        return _pictures(config.images, classes)
    if config.split == "val":
        found = class_names(root, "val")
        require(
            len(found) == len(classes),
            f"{root} has {len(found)} validation classes but the checkpoint knows {len(classes)}: "
            "give the data.root it was trained for",
        )
    if config.split == "test":
        submission_ids(root, classes)  # it would be too late after hours
        if (folder := Path(root).expanduser().absolute() / "test").is_dir():
            return _unlabelled(folder, classes)
    return scan_folder(root, config.split, classes, on_progress)


def _unlabelled(folder: Path, classes: list[str]) -> ImageIndex:
    """The images in a folder, by name; as the official tar has them."""
    names = images_in(folder)
    require(len(names) > 0, f"{folder} has no image in it: test images lie there without folders")
    return ImageIndex(classes, np.full(len(names), -1, np.int64), str(folder), names)


def _pictures(given: str | list[str], classes: list[str]) -> ImageIndex:
    """Image files, or the image files in folders, in the order given; their labels are -1."""
    files: list[str] = []
    for name in given if isinstance(given, list) else [given]:
        path = Path(name).expanduser().absolute()
        with refusing(OSError, what=f"cannot read images={name}"):
            inside = sorted(path.iterdir()) if path.is_dir() else [path]
            found = [str(file) for file in inside if is_image(os.fsencode(file.name))]
            if not path.exists() or not found:
                raise UserError(f"images={name} is no image file and no folder of some")
        files += found
    names = np.array([os.fsencode(file) for file in files], np.bytes_)
    return ImageIndex(classes, np.full(len(files), -1, np.int64), "/", names)


def class_words(root: str, classes: list[str]) -> list[str]:
    """What people call the classes, if ImageNet's devkit lies in the data set; else their names."""
    folder = Path(root).expanduser().absolute()
    refuse_closed(folder)
    words = open_devkit(folder).words if (folder / DEVKIT).exists() else {}
    return [words.get(name, name) for name in classes]
