"""Every configuration key once: its type, default, unit, and where the paper states it.

The dataclasses own names and types, the yaml files next to this one own the values of the
named choices (`model=C`, `act=prelu`, ...). Hydra refuses a key that is not listed here.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class StageConfig:
    """Convolutions of one map size, then a max-pool: one row of Table 1 or Table 3."""

    filters: int = MISSING
    convs: int = MISSING
    kernel: int = 3
    stride: int = 1  # of the first convolution
    pad: list[int] = field(default_factory=lambda: [1])  # taken in turn, convolution by convolution
    pool: int = 0  # side of the max-pool that ends the stage; 0: none
    pool_stride: int = 2


@dataclass
class ModelConfig:
    """One architecture (Tables 1 and 3), and the training scale and length the paper gives it."""

    name: str = MISSING
    stages: list[StageConfig] = MISSING
    extra_convs: int = 0  # spread over the stages of several layers, deepest first (Sec. 2.2)
    spp: list[int] = MISSING  # pyramid levels: n stands for n x n bins
    fc: list[int] = field(default_factory=lambda: [4096, 4096])  # widths of fc1 and fc2
    # Factor of the images before conv1. Not in the paper, whose recipe diverges within ten steps
    # (docs/choices.md, results/start); 1: the paper to the letter.
    input_scale: float = 0.03125
    scale: Any = MISSING  # default of data.scale
    epochs: int = MISSING  # default of epochs


@dataclass
class ActConfig:
    """The rectifier f(y) = max(0, y) + slope * min(0, y) of Eq. 1."""

    name: str = MISSING
    slope: float = MISSING  # a: the start value where learned, else the fixed value
    learned: bool = MISSING
    shared: bool = False  # one slope for a whole layer instead of one for each channel


@dataclass
class InitConfig:
    """How weights start (Sec. 2.2); biases start at 0."""

    name: str = MISSING
    rule: str = MISSING  # he (Eq. 14) | he_forward (Eq. 10) | xavier | gaussian
    conv_std: float = 0.01  # rule gaussian only ([16])
    fc_std: list[float] = field(default_factory=lambda: [0.01, 0.01, 0.001])  # fc1, fc2, fc3


@dataclass
class DataConfig:
    """A data set and the views that training and validation take of it (Sec. 3)."""

    name: str = MISSING
    root: str = MISSING  # folder with train/<class>/* and val/<class>/*, or the official tars
    num_classes: int | None = None  # None: as many as train/ has folders
    crop: int = 224  # side of the training crop, pixels
    scale: Any = "${model.scale}"  # shorter side in training: a number, or [low, high] inclusive
    val_scale: int | None = None  # shorter side in validation; None: crop * 256 / 224
    mean: str = "channel"  # channel, or a mean image (.npy) of scripts/prepare_imagenet.py
    on_error: str = "stop"  # an unreadable image: stop, or skip (take the next one; an event)


@dataclass
class LoaderConfig:
    """Who decodes. Both loaders take the same draws and give the same batches."""

    name: str = MISSING  # dali | torchvision
    workers: int | None = None  # decoding threads (dali) or processes; None: the CPUs we may use
    prefetch: int = 2  # batches decoded ahead (dali: in all; torchvision: by each worker)
    device: str = "auto"  # dali only: auto | cpu | gpu


@dataclass
class ScheduleConfig:
    """The learning rate: 1e-2, 1e-3, 1e-4, switched when the error plateaus (Sec. 3)."""

    rule: str = "plateau"  # plateau | fixed
    rates: list[float] = field(default_factory=lambda: [1e-2, 1e-3, 1e-4])
    patience: int = 5  # plateau: epochs without a better validation top-1 error before a switch
    min_improvement: float = 0.1  # plateau: what counts as better, points of top-1 error
    switch_epochs: list[int] = field(default_factory=lambda: [30, 60])  # fixed: when


@dataclass
class CheckpointConfig:
    """What is kept in runs/NAME/checkpoints besides last.pt and best.pt, and how it is written."""

    every_steps: int = 2000  # last.pt is also written this often inside an epoch; 0: epochs only
    keep: int = 0  # also keep the last N epoch ends as epoch-EEE.pt
    asynchronous: bool = True  # written beside training, from a copy in host memory


@dataclass
class TrainConfig:
    """Keys of train.py."""

    model: ModelConfig = MISSING
    act: ActConfig = MISSING
    init: InitConfig = MISSING
    data: DataConfig = MISSING
    loader: LoaderConfig = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    experiment: Any = None  # a file of configs/experiment/: a row of a table, a curve of a figure

    name: str = "${model.name}-${act.name}-${init.name}-${data.name}-seed${seed}"
    runs: str = "runs"  # folder of the run folders
    seed: int = 0
    epochs: int = "${model.epochs}"  # type: ignore[assignment]  # passes over the training set
    max_steps: int | None = None  # stop after this many optimiser steps, if epochs end later
    log_every: int = 50  # steps between metrics lines
    batch_size: int = 128  # images a step, over all processes and accumulation rounds (Sec. 3)
    micro_batch: int | None = None  # images at once on a device; None: the whole share
    momentum: float = 0.9  # Sec. 3, Eq. 4
    weight_decay: float = 5e-4  # Sec. 3; on weights, never on slopes (Sec. 2.1) or biases
    dropout: float = 0.5  # on fc1 and fc2 (Sec. 3)
    # Steps [first, last], counted from 1, that make no update: a way past a divergence. A resumed
    # run may add some that are still to come.
    skip_steps: list[list[int]] = field(default_factory=list)
    val_subset: int | None = None  # validate on this many images, chosen once (Figs. 2, 3: 3000)
    val_every: int | None = None  # also validate every so many steps, for curves; None: epochs only
    precision: str = "bf16"  # fp32 | tf32 | bf16 | fp16
    parallel: str = "ddp"  # ddp | hybrid: fc layers divided among the processes (Sec. 3, [15])
    device: str = "auto"  # auto | cpu | cuda
    timeout: int = 600  # seconds without progress of one of several processes: the job ends
    compile: bool = False  # torch.compile the training step's forward and backward


@dataclass
class EvalDataConfig:
    """Where eval.py reads images; what is None comes from the checkpoint's own configuration."""

    root: str | None = None
    on_error: str = "stop"


@dataclass
class EvalConfig:
    """Keys of eval.py (Sec. 3, testing)."""

    checkpoint: Any = MISSING  # a checkpoint, or a list: an ensemble (Table 7); .npz: predictions
    weights: list[float] | None = None  # of the ensemble's members; None: alike
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    loader: LoaderConfig = MISSING
    views: str = "centre"  # centre | ten | grid | sparse | dense
    scales: list[int] | None = None  # shorter sides; None: the run's validation scale, [11]'s six
    average: str = "probabilities"  # over views and scales: probabilities | logits
    square: bool = False  # windows of the central square ([16]), not of the entire image ([11])
    on_map: bool = False  # pool windows on the whole image's map ([11]) instead of cutting crops
    split: str = "val"  # val | test: the unlabelled images, for a file to submit
    images: Any = None  # files, or folders of them, to be named instead of a split
    subset: int | None = None  # as val_subset of the run
    batch_size: int = 8  # images of one size at once on a device
    precision: str | None = None  # fp32 | tf32 | bf16 | fp16; None: as the run was trained
    device: str = "auto"  # auto | cpu | cuda
    timeout: int = 600  # as in training
    save_predictions: str | None = None  # .npz for the combined probabilities (float16)
    out: str | None = None  # result file; None: result-*.json in the run's folder
