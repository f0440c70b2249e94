"""Test trained networks: `python eval.py checkpoint=runs/NAME/checkpoints/best.pt views=dense`.

`checkpoint=[a.pt,b.pt,...]` is an ensemble, and may include .npz files of save_predictions=.
`split=test` writes the ILSVRC submission file; `images=[a.jpg,...]` classifies your own pictures.
"""

import gc
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py

from configs.help import answer_help
from configs.schema import EvalConfig
from configs.store import compose_early
from configs.validate import require, validate_eval


def check(config: EvalConfig) -> None:
    """Raise UserError for a bad configuration or a missing checkpoint; needs no torch."""
    validate_eval(config)
    for path in config.checkpoints:
        require(Path(path).is_file(), f"there is no checkpoint at {path}")


if __name__ == "__main__":  # before torch is loaded
    answer_help(EvalConfig)
    config = compose_early(EvalConfig, check, "eval")

import hydra
import numpy as np
from omegaconf import DictConfig

from common.errors import UserError, one_sentence
from configs.store import as_typed, register, to_config, to_dict
from data.sources.folders import refuse_closed
from data.sources.imagenet import label_files, open_devkit
from data.sources.index import ImageIndex
from engine.distributed import World, open_world
from engine.stopping import StopRequest
from evaluation.evaluate import (
    NetworkScores,
    OpenNetwork,
    open_images,
    open_network,
    score_network,
)
from evaluation.pictures import classify_pictures
from evaluation.predictions import (
    Predictions,
    ensemble,
    hash_of_images,
    refuse_mixed,
    save_predictions,
)
from evaluation.result import (
    Report,
    attachment_suffix,
    check_outputs,
    report_errors,
    result_path,
)
from evaluation.score_shards import own_shards
from evaluation.submission import submission

register()


@dataclass(frozen=True)
class Subject:
    """What the report needs besides scores."""

    root: str | None  # the data set; None: unknown to saved predictions
    words: list[str] | None  # the English names of the classes
    index: ImageIndex | None  # of a submission's images or of pictures
    remarks: list[str]  # on the data set, to be printed


def open_subject(config: EvalConfig, opened: Mapping[str, OpenNetwork | Predictions]) -> Subject:
    """The images and class names that the report needs; raises UserError if they are missing."""
    name, first = next(iter(opened.items()))
    networks = [each for each in opened.values() if isinstance(each, OpenNetwork)]
    root = networks[0].root if networks else config.data.root
    remarks = networks[0].index.remarks() if networks else []
    words = class_words(root, first.classes) if root else None
    if config.images is None and config.split == "val":
        return Subject(root, words, None, remarks)
    if root is None:
        raise UserError("saved predictions do not name their data set: type data.root=...")
    index = networks[0].index if networks else open_images(config, root, first.classes)
    if hash_of_images(index, np.arange(len(index))) != first.images:
        raise UserError(f"{name} holds predictions of other images than these")
    return Subject(root, words, index, remarks)


def evaluate(config: EvalConfig, world: World) -> None:
    """Score the images with each network, combine the scores, print and write the results.

    Whatever can be refused is refused before the first image is scored.
    """
    check(config)
    paths = [Path(path) for path in config.checkpoints]
    out = result_path(config, paths)
    check_outputs(config, out)
    folder = out.with_suffix(".parts")
    with StopRequest(world) as stop:
        opened = {str(path): open_network(path, config, world.watch.alive) for path in paths}
        refuse_mixed(opened)
        subject = open_subject(config, opened)
        if world.is_main:
            for remark in subject.remarks:
                print(remark)
        with own_shards(folder, world):
            networks = {
                name: score_network(each, config, stop, folder) for name, each in opened.items()
            }
            world.barrier()  # all have read the shards, so the main process may delete them
            if world.is_main:
                write_results(config, networks, subject, out)


def write_results(
    config: EvalConfig, networks: dict[str, NetworkScores], subject: Subject, out: Path
) -> None:
    """Write the results, then delete the shards and print the report."""
    predictions = {name: network.predictions for name, network in networks.items()}
    combined = ensemble(predictions, config.weights)
    report = build_report(config, networks, combined, subject)
    if config.save_predictions:
        save_predictions(Path(config.save_predictions), combined)
    written = report.write(out, attachment_suffix(config.images, config.split))
    for network in networks.values():
        for shards in network.shards:
            shards.remove()
    print(f"{', '.join(networks)}: views={config.views}")
    print(report.text)
    print(f"written: {', '.join(map(str, written))}")


def build_report(
    config: EvalConfig,
    networks: dict[str, NetworkScores],
    combined: Predictions,
    subject: Subject,
) -> Report:
    """Errors, a submission, or the classes of pictures."""
    index, root = subject.index, subject.root
    if index is None or root is None:
        return report_errors(config, networks, combined, words=subject.words)
    num_images = len(combined.scores)
    result = {"views": config.views, "images": num_images, "checkpoints": list(networks)}
    if config.images is None:
        result["config"] = to_dict(config)
        text = f"{num_images} test images: five classes for each, as ILSVRC2012_ID"
        return Report(text, result, submission(combined, root).encode())
    from evaluation.picture_figure import picture_figure  # matplotlib takes a second

    pictures = classify_pictures(combined, index, subject.words or combined.classes)
    result |= {"images": len(pictures), "pictures": [asdict(each) for each in pictures]}
    result["config"] = to_dict(config)
    title = f"Five most probable classes, {', '.join(networks)}, views={config.views}"
    figure = picture_figure(pictures, title) if pictures else None
    text = "\n".join(picture.as_text() for picture in pictures)
    return Report(text, result, figure)


def class_words(root: str, classes: list[str]) -> list[str]:
    """The classes' English names if the devkit or Kaggle's files have them, else their names."""
    folder = Path(root).expanduser().absolute()
    refuse_closed(folder)
    words = open_devkit(folder).words if label_files(folder) else {}
    return [words.get(name, name) for name in classes]


def run(config: EvalConfig) -> None:
    """Evaluate in all processes; raises UserError or Stopped."""
    with open_world(config.device, config.timeout) as world:
        evaluate(config, world)


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(raw: DictConfig) -> None:
    """The program with Hydra's own options, such as --multirun."""
    with one_sentence():
        run(to_config(raw, EvalConfig))


if __name__ == "__main__":
    gc.freeze()  # collecting what has been imported would take a second at the end
    with one_sentence():
        if config:
            run(config)
        else:
            sys.argv[1:] = as_typed(sys.argv[1:], EvalConfig)
            main()
