"""Train one of the paper's networks: `python train.py model=C act=prelu init=he`.

The same command again resumes. `python train.py --help` explains the keys.
"""

import gc
import os
import shlex
import sys
from functools import partial
from pathlib import Path

# Loader threads share the cores with torch's threads, which would otherwise spin at every barrier.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from configs.help import answer_help
from configs.schema import TrainConfig
from configs.store import compose_early, to_dict
from configs.validate import validate

if __name__ == "__main__":  # before torch is loaded
    answer_help(TrainConfig)

    def check(config: TrainConfig) -> None:
        """Refuse at once what can be seen without loading torch."""
        # These import NumPy, which --help does not need.
        from data.sources.index import refuse_missing_root
        from engine.run_folder import check_run

        num_processes = int(os.environ.get("WORLD_SIZE", "1"))
        validate(config, num_processes)
        if num_processes == 1:  # of several, only the main one does so, in run()
            check_run(config.folder, to_dict(config))
            refuse_missing_root(config.data)

    config = compose_early(TrainConfig, check, "train")

import hydra
import torch
from omegaconf import DictConfig

from common.errors import one_sentence, refusing
from common.machine import keep_freed_memory
from configs.store import as_typed, register, to_config
from data.draws import subset
from data.loading import OnEvent, centre_stream, training_stream
from data.normalise import load_mean, warp_mean
from data.sources.index import open_dataset
from engine.distributed import World, open_world
from engine.log import outcome
from engine.optim import build_optimizer
from engine.parallel import open_parallel
from engine.precision import set_precision
from engine.run_folder import check_run, open_run
from engine.step import TrainingStep
from engine.trainer import Trainer
from evaluation.metrics import ErrorCounts
from evaluation.validation import centre_errors
from models.describe import describe
from models.network import Network, build_network

register()


def build(config: TrainConfig, world: World) -> Trainer:
    """Put data, network, step and validation together; raises UserError for bad input."""
    precision = set_precision(config.precision, world.device)
    dataset = open_dataset(config.data, world.watch.alive)
    crop = config.data.crop
    mean = warp_mean(load_mean(config.data.mean), crop, crop).to(world.device)
    whole = whole_network(config, dataset.num_classes)
    parallel = open_parallel(config.parallel, world)
    network = parallel.share_out(whole).to(world.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(network, config)
    micro_batch = config.images_at_once(world.size)
    step = TrainingStep(
        network=parallel.connect(network.compiled() if config.compile else network),
        optimizer=optimizer,
        mean=mean,
        precision=precision,
        micro_batch=micro_batch,
        gradient_norm=partial(parallel.gradient_norm, network),
        clip_norm=config.clip_norm,
        compiled=config.compile,
    )
    val = subset(len(dataset.val), config.val_subset)

    def validate_centre(on_event: OnEvent) -> ErrorCounts:
        own = val[world.rank :: world.size]
        return centre_errors(
            parallel.whole_network(network),
            centre_stream(config, dataset.val, own, batch_size=micro_batch, on_event=on_event),
            mean,
            precision=precision,
            world=world,
            num_images=len(val),
        )

    return Trainer(
        config=config,
        dataset=dataset,
        world=world,
        folder=config.folder,
        parallel=parallel,
        network=network,
        step=step,
        batches=partial(training_stream, config, dataset.train, world.share(config.batch_size)),
        validate=validate_centre,
    )


def whole_network(config: TrainConfig, num_classes: int) -> Network:
    """The network as one process would have it; raises UserError for a crop too small for it."""
    model, act, init = config.model, config.act, config.init
    with refusing(ValueError):
        describe(model, act, init, num_classes=num_classes, crop=config.data.crop)
    return build_network(
        model, act, init, num_classes=num_classes, dropout=config.dropout, seed=config.seed
    )


def evaluation_command(config: TrainConfig) -> str:
    """The command that tests the run's last weights, quoted for a shell."""
    program = os.path.relpath(Path(__file__).with_name("eval.py"))
    checkpoint = config.folder / "checkpoints" / "last.pt"
    words = ["python", program, f"checkpoint={checkpoint}", "views=dense"]
    if config.loader.name != "dali":
        words.append(f"loader={config.loader.name}")
    if config.device != "auto":
        words.append(f"device={config.device}")
    return shlex.join(words)


def run(config: TrainConfig) -> None:
    """Validate, build, fit; raises UserError or Stopped."""
    with open_world(config.device, config.timeout) as world:
        if world.device.type == "cpu":
            keep_freed_memory()
        validate(config, world.size)
        if world.is_main:
            check_run(config.folder, to_dict(config))
        trainer = build(config, world)
        with open_run(config.folder, trainer.settings, world):
            trainer.fit()
        if world.is_main:
            command = evaluation_command(config)
            print(f"{outcome(trainer)}\n  to test it   {command}", flush=True)


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(raw: DictConfig) -> None:
    """For Hydra's own options, such as --multirun."""
    with one_sentence():
        run(to_config(raw, TrainConfig))


if __name__ == "__main__":
    gc.freeze()  # imports stay: a collection of them at the end would take a second
    with one_sentence():
        if config:
            run(config)
        else:
            sys.argv[1:] = as_typed(sys.argv[1:], TrainConfig)
            main()
