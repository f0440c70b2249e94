"""Test trained networks: `python eval.py checkpoint=runs/NAME/checkpoints/best.pt views=dense`.

`checkpoint=[a.pt,b.pt,...]` is an ensemble; a .npz file of save_predictions= may stand for one.
`split=test` writes the ILSVRC submission file, `images=[a.jpg,...]` names what is in pictures.
"""

import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in train.py

from configs.help import answer_help
from configs.schema import EvalConfig
from configs.store import refuse_early
from configs.validate import validate_eval

if __name__ == "__main__":  # before torch is loaded
    answer_help(EvalConfig)
    refuse_early(EvalConfig, validate_eval, "eval")

import hydra
import numpy as np
from omegaconf import DictConfig

from common.errors import UserError, one_sentence
from configs.store import register, to_config, to_dict
from data.sources.folders import refuse_closed
from data.sources.imagenet import label_files, open_devkit
from engine.distributed import World, open_world
from engine.stopping import StopRequest
from evaluation.evaluate import NetworkScores, open_images, open_scores
from evaluation.pictures import classify_pictures, picture_figure
from evaluation.predictions import Predictions, ensemble, hash_of_images, save_predictions
from evaluation.result import (
    Report,
    attachment_suffix,
    refuse_overwriting,
    report_errors,
    result_path,
)
from evaluation.submission import submission

register()


def evaluate(config: EvalConfig, world: World) -> None:
    """Score the images with every network, combine the scores, print and write the results."""
    validate_eval(config)
    paths = [Path(path) for path in config.checkpoints]
    out = result_path(config, paths)
    refuse_overwriting(config, out)
    shards = out.with_suffix(".parts")
    with StopRequest(world) as stop:
        networks = {str(path): open_scores(path, config, stop, shards) for path in paths}
    world.barrier()  # all have read the shards, which the main process removes
    each = {name: network.predictions for name, network in networks.items()}
    combined = ensemble(each, config.weights)
    report = build_report(config, networks, combined)
    if not world.is_main:
        return
    print(f"{', '.join(networks)}: views={config.views}")
    print(report.text)
    if config.save_predictions:
        save_predictions(Path(config.save_predictions), combined)
    written = report.write(out, attachment_suffix(config.images, config.split))
    shutil.rmtree(shards, ignore_errors=True)
    print(f"written: {', '.join(map(str, written))}")


def build_report(
    config: EvalConfig, networks: dict[str, NetworkScores], combined: Predictions
) -> Report:
    """Errors, a submission, or the classes of pictures; raises UserError where there are none."""
    roots = [network.root for network in networks.values() if network.root is not None]
    root = roots[0] if roots else config.data.root
    if config.images is None and config.split == "val":
        words = class_words(root, combined.classes) if root else None
        return report_errors(config, networks, combined, words=words)
    if root is None:
        raise UserError("saved predictions do not know their data set: type data.root=... of it")
    index = open_images(config, root, combined.classes)
    if hash_of_images(index, np.arange(len(index))) != combined.images:
        raise UserError(f"{next(iter(networks))} holds predictions of other images than these")
    num_images = len(combined.scores)
    result = {"views": config.views, "images": num_images, "checkpoints": list(networks)}
    if config.images is None:
        text = f"{num_images} test images: five classes for each, as ILSVRC2012_ID"
        return Report(
            text, {**result, "config": to_dict(config)}, submission(combined, root).encode
        )
    pictures = classify_pictures(combined, index, class_words(root, combined.classes))
    result |= {"images": len(pictures), "pictures": [asdict(each) for each in pictures]}
    title = f"Five most probable classes, {', '.join(networks)}, views={config.views}"
    figure = partial(picture_figure, pictures, title) if pictures else None
    text = "\n".join(picture.as_text() for picture in pictures)
    return Report(text, {**result, "config": to_dict(config)}, figure)


def class_words(root: str, classes: list[str]) -> list[str]:
    """What people call the classes, if the devkit or Kaggle's files say so; else their names."""
    folder = Path(root).expanduser().absolute()
    refuse_closed(folder)
    words = open_devkit(folder).words if label_files(folder) else {}
    return [words.get(name, name) for name in classes]


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(raw: DictConfig) -> None:
    """Compose, validate, evaluate."""
    with one_sentence():
        config = to_config(raw, EvalConfig)
        with open_world(config.device, config.timeout) as world:
            evaluate(config, world)


if __name__ == "__main__":
    main()
