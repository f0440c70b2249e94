"""Every configuration key, once: its type, default, meaning, unit, and place in the paper.

A new key is one line of this file. What Hydra accepts, the checks of choices, what a resumed run
may change, `--help` and the tables of keys in docs/ all follow from it. The yaml files beside it
hold only the values of named choices (`model=C`, `act=prelu`, ...; their keys are MISSING here) and
the default choices.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from configs.keys import Effect, free, key, noted

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_DEVICES = ("auto", "cpu", "cuda")
_ON_ERROR = ("stop", "skip")


@dataclass
class StageConfig:
    """Convolutions of one map size, then a max-pool: one row of Table 1 or Table 3."""

    filters: int = key(MISSING, "filters of each convolution")
    convs: int = key(MISSING, "number of convolutions")
    kernel: int = key(3, "side of the filters")
    stride: int = key(1, "stride of the first convolution")
    pad: list[int] = key([1], "padding of the convolutions, repeated in turn")
    pool: int = key(0, "side of the max-pool that ends the stage; 0: none")
    pool_stride: int = key(2, "stride of the max-pool")


@dataclass
class ModelConfig:
    """Architecture (Tables 1 and 3), with the paper's training scale and number of epochs."""

    name: str = key(MISSING, "the architecture's name")
    stages: list[StageConfig] = key(MISSING, "stages of convolutions, as in configs/model/*.yaml")
    extra_convs: int = key(0, "more convolutions, from the deepest stage up (Sec. 2.2)", least=0)
    spp: list[int] = key(MISSING, "pyramid levels: n for n x n bins ([11])")
    fc: list[int] = key([4096, 4096], "widths of fc1 and fc2")
    scale: Any = key(MISSING, "default of data.scale")
    epochs: int = key(MISSING, "default of epochs")


@dataclass
class ActConfig:
    """Rectifier: f(y) = max(0, y) + slope * min(0, y) (Eq. 1)."""

    name: str = key(MISSING, "the rectifier's name")
    slope: float = key(MISSING, "a of Eq. 1: initial where learned, else fixed")
    learned: bool = key(MISSING, "whether the slope is learned")
    shared: bool = key(False, "one slope per layer instead of one per channel")
    kernel: str = free(
        "auto",
        "triton: bias, rectifier and dropout in one GPU kernel; auto: eager, until measured",
        choices=("auto", "eager", "triton"),
    )

    def num_slopes(self, num_channels: int) -> int:
        """The number of learned slopes of one rectifier."""
        return (1 if self.shared else num_channels) if self.learned else 0


@dataclass
class InitConfig:
    """Initial weights (Sec. 2.2); biases start at 0."""

    name: str = key(MISSING, "the initialisation's name")
    rule: str = key(
        MISSING,
        "std of convolutions: from Eq. 14, Eq. 10 or 1/n, or conv_std",
        choices=("he", "he_forward", "xavier", "gaussian"),
    )
    conv_std: float = key(0.01, "std of convolutions for rule=gaussian ([16])")
    fc_std: list[float] = key([0.01, 0.01, 0.001], "std of fc1, fc2, fc3")


@dataclass
class DataConfig:
    """Data set, and its views in training and validation (Sec. 3)."""

    name: str = key(MISSING, "the data set's name")
    root: str = free(
        MISSING, "folder of train/<class>/* and val/<class>/*, official tars, or Kaggle's ILSVRC/"
    )
    num_classes: int | None = key(
        None, "null: the number of folders in train/", least=1, effect=Effect.NONE
    )
    crop: int = key(224, "side of the training crop, pixels", least=1)
    scale: Any = key("${model.scale}", "shorter side in training, pixels: a number or [low, high]")
    val_scale: int | None = key(None, "shorter side in validation; null: crop * 256 / 224", least=1)
    mean: str = key(
        "channel",
        "what is subtracted: channel, or a mean image (.npy) of prepare_imagenet.py",
        resumable=True,  # the file may have moved: its content is compared
        effect=Effect.NOTED,
    )
    on_error: str = free("stop", "unreadable image: stop, or skip to the next", choices=_ON_ERROR)

    @property
    def scale_range(self) -> tuple[int, int]:
        """`scale` as (low, high), pixels, inclusive."""
        low, high = self.scale if isinstance(self.scale, list) else (self.scale, self.scale)
        return low, high

    @property
    def validation_scale(self) -> int:
        """Shorter side in validation; by default 256 for a crop of 224, others in proportion."""
        return self.val_scale or round(self.crop * 256 / 224)


@dataclass
class LoaderConfig:
    """Loader: decodes and crops; both take the same draws and give the same batches."""

    name: str = free(MISSING, "the loader's name", choices=("dali", "torchvision"))
    workers: int | None = free(
        None, "decoding threads (dali) or processes; null: its share of the CPUs, at most 32"
    )
    prefetch: int = free(2, "batches decoded ahead (torchvision: by each worker)", least=1)
    device: str = free("auto", "where dali decodes", choices=("auto", "cpu", "gpu"))
    decode: str = free(
        "region",
        "what dali decodes: the crop's region, or whole images, as a GPU's JPEG engine can",
        choices=("region", "whole"),
    )


@dataclass
class ScheduleConfig:
    """Learning rate: 1e-2, 1e-3, 1e-4, switched when the error plateaus (Sec. 3)."""

    rule: str = noted(
        "plateau",
        "when the rate switches: if the error plateaus, or at fixed epochs",
        choices=("plateau", "fixed"),
    )
    rates: list[float] = noted([1e-2, 1e-3, 1e-4], "learning rates, in order")
    patience: int = noted(5, "plateau: epochs without improvement before a switch", least=1)
    min_improvement: float = noted(0.1, "plateau: smallest improvement, points of top-1 error")
    switch_epochs: list[int] = noted([30, 60], "fixed: epochs of the switches")


@dataclass
class CheckpointConfig:
    """Checkpoints: what is kept in runs/NAME/checkpoints besides last.pt and best.pt."""

    every_steps: int = free(2000, "steps between saves in an epoch; 0: epoch ends only")
    keep: int = free(0, "also keep the last N epoch ends, as epoch-EEE.pt")
    asynchronous: bool = free(True, "write in the background, from a copy in host memory")


@dataclass
class TrainConfig:
    """Training."""

    model: ModelConfig = MISSING
    act: ActConfig = MISSING
    init: InitConfig = MISSING
    data: DataConfig = MISSING
    loader: LoaderConfig = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    experiment: Any = key(None, "a table's row or a figure's curve: configs/experiment/*.yaml")

    name: str = free(  # changes on resume if the folder was renamed
        "${model.name}-${act.name}-${init.name}-${data.name}-seed${seed}",
        "name of the run and of its folder",
    )
    runs: str = free("runs", "folder of the run folders")
    seed: int = key(0, "seed of all random numbers", effect=Effect.NONE)
    epochs: int = key("${model.epochs}", "passes over the training set", least=1)
    max_steps: int | None = free(None, "stop after this many steps, even within an epoch", least=1)
    log_every: int = free(50, "steps between lines of metrics.jsonl", least=1)
    batch_size: int = key(128, "images per step, over all processes (Sec. 3)", least=1)
    micro_batch: int | None = free(None, "images per pass on a device; null: its whole share")
    momentum: float = key(0.9, "mu of Eq. 4 (Sec. 3)")
    weight_decay: float = key(5e-4, "of weights, never of slopes (Sec. 2.1) or biases (Sec. 3)")
    dropout: float = key(0.5, "drop probability on fc1 and fc2 (Sec. 3)")
    # Not in the paper, whose recipe diverges within ten steps (docs/choices.md, results/start).
    clip_norm: float | None = key(1.0, "largest gradient norm; null: no limit, as in the paper")
    skip_steps: list[list[int]] = key(
        [],
        "spans [first, last] of steps, from 1, without an update: a way past a divergence",
        resumable=True,  # spans of later steps may be added
        effect=Effect.NOTED,
    )
    val_subset: int | None = key(None, "validation images (Figs. 2, 3: 3000); null: all", least=1)
    val_every: int | None = free(None, "steps between validations in an epoch; null: none", least=1)
    precision: str = noted("bf16", "arithmetic; weights and updates stay fp32", choices=PRECISIONS)
    parallel: str = free(
        "ddp",
        "hybrid: fc layers divided among the processes (Sec. 3, [15])",
        choices=("ddp", "hybrid"),
    )
    device: str = free("auto", "where training runs", choices=_DEVICES)
    timeout: int = free(600, "seconds without progress after which the job ends")
    compile: bool = free(False, "torch.compile the forward and backward pass")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name

    def skipped_span(self, step: int) -> list[int] | None:
        """The span of skip_steps that contains step `step`, counted from 1, if any."""
        return next((span for span in self.skip_steps if span[0] <= step <= span[1]), None)

    def images_at_once(self, num_processes: int) -> int:
        """Images per forward and backward pass on a device."""
        return self.micro_batch or self.batch_size // num_processes


@dataclass
class EvalDataConfig:
    """Data set; null values come from the checkpoint's own configuration."""

    root: str | None = key(None, "folder of the data set")
    on_error: str = key("stop", "at an unreadable image: stop, or skip it", choices=_ON_ERROR)


@dataclass
class EvalConfig:
    """Testing (Sec. 3)."""

    checkpoint: Any = key(MISSING, "checkpoint, or predictions (.npz); a list: an ensemble")
    weights: list[float] | None = key(None, "weights of an ensemble's networks; null: equal")
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    loader: LoaderConfig = MISSING
    views: str = key(
        "centre",
        "views of an image, at each scale",
        choices=("centre", "ten", "grid", "sparse", "dense"),
    )
    scales: list[int] | None = key(
        None, "shorter sides, pixels; null: the run's validation scale (sparse: [11]'s six)"
    )
    average: str = key("probabilities", "what is averaged", choices=("probabilities", "logits"))
    square: bool = key(False, "views of the central square ([16]), not of the whole image ([11])")
    on_map: bool = key(False, "views as windows of the whole image's map ([11]), not as crops")
    split: str = key("val", "test: unlabelled images, for a submission", choices=("val", "test"))
    images: Any = key(None, "image files or folders to classify, instead of a split")
    subset: int | None = key(None, "images to test on; null: all", least=1)
    batch_size: int = key(8, "images of one size per pass on a device", least=1)
    precision: str | None = key(None, "arithmetic; null: the run's", choices=PRECISIONS)
    device: str = key("auto", "where testing runs", choices=_DEVICES)
    timeout: int = key(600, "seconds without progress after which the job ends")
    save_predictions: str | None = key(None, "file (.npz) for the combined probabilities, float16")
    out: str | None = key(None, "result file; null: result-*.json in the run's folder")

    @property
    def checkpoints(self) -> list[str]:
        """The files that `checkpoint` names."""
        files = self.checkpoint if isinstance(self.checkpoint, list) else [self.checkpoint]
        return [str(file) for file in files]
