"""Checks that need more than one key, before anything is built or written."""

from typing import Any

from common.errors import UserError
from configs.schema import DataConfig, EvalConfig, LoaderConfig, ModelConfig, TrainConfig

PRECISIONS = ["fp32", "tf32", "bf16", "fp16"]
VIEWS = ["centre", "ten", "grid", "sparse", "dense"]


def require(condition: bool, sentence: str) -> None:
    """Raise UserError(sentence) unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def one_of(key: str, value: Any, choices: list[str]) -> None:
    """Raise UserError unless the value of `key` is one of the choices."""
    require(value in choices, f"{key}={value} is unknown: choose from {', '.join(choices)}")


def scale_range(scale: Any) -> tuple[int, int]:
    """data.scale as (low, high), both included; raises UserError for anything else."""
    ends = scale if isinstance(scale, list) else [scale, scale]
    if len(ends) != 2 or not all(isinstance(end, int) for end in ends) or ends[0] > ends[1]:
        raise UserError(
            f"data.scale={scale} must be a whole number or [low, high] with low <= high"
        )
    return ends[0], ends[1]


def val_scale(data: DataConfig) -> int:
    """Shorter side in validation: 256 for a crop of 224, in proportion for other crops."""
    return data.val_scale or round(data.crop * 256 / 224)


def micro_batch(config: TrainConfig, num_processes: int) -> int:
    """Images at once on a device."""
    return config.micro_batch or config.batch_size // num_processes


def validate(config: TrainConfig, num_processes: int) -> None:
    """Refuse what cannot be trained; raises UserError with one sentence."""
    one_of("precision", config.precision, PRECISIONS)
    one_of("parallel", config.parallel, ["ddp", "hybrid"])
    one_of("device", config.device, ["auto", "cpu", "cuda"])
    one_of("schedule.rule", config.schedule.rule, ["plateau", "fixed"])
    one_of("init.rule", config.init.rule, ["he", "he_forward", "xavier", "gaussian"])
    _validate_loader(config.loader)
    _validate_model(config.model)
    require(len(config.init.fc_std) == 3, f"init.fc_std={config.init.fc_std} must have 3 values")
    _validate_data(config.data)
    _validate_amounts(config)
    share, rest = divmod(config.batch_size, num_processes)
    require(
        rest == 0 and share > 0,
        f"batch_size={config.batch_size} is not divisible by {num_processes} processes",
    )
    require(
        config.parallel == "ddp" or all(width % num_processes == 0 for width in config.model.fc),
        f"parallel=hybrid divides the fc layers among the processes: {num_processes} does not "
        f"divide model.fc={config.model.fc}",
    )
    micro = micro_batch(config, num_processes)
    require(
        micro > 0 and share % micro == 0,
        f"micro_batch={micro} does not divide the {share} images of a process's share",
    )


def _validate_model(model: ModelConfig) -> None:
    require(len(model.fc) == 2, f"model.fc={model.fc} must give the widths of fc1 and fc2")
    require(
        len(model.spp) > 0 and min(model.spp) > 0,
        f"model.spp={model.spp} must list at least one level, each at least 1",
    )
    require(model.input_scale > 0, f"model.input_scale={model.input_scale} must be positive")
    require(model.extra_convs >= 0, f"model.extra_convs={model.extra_convs} is negative")
    require(
        model.extra_convs == 0 or any(stage.convs > 1 for stage in model.stages),
        f"model.extra_convs={model.extra_convs} needs a stage of several layers",
    )
    for number, stage in enumerate(model.stages, 1):
        require(
            min(stage.filters, stage.convs, stage.kernel, stage.stride) > 0 and len(stage.pad) > 0,
            f"stage {number} of model {model.name} is empty or has no pad",
        )


def _validate_loader(loader: LoaderConfig) -> None:
    one_of("loader.name", loader.name, ["dali", "torchvision"])
    one_of("loader.device", loader.device, ["auto", "cpu", "gpu"])
    require(loader.prefetch > 0, f"loader.prefetch={loader.prefetch} must be at least 1")
    require(
        loader.workers is None or loader.workers >= (loader.name == "dali"),
        f"loader.workers={loader.workers} is too few",
    )


def validate_timeout(timeout: int) -> None:
    """Refuse what ends jobs in which nothing hangs; asked before there are processes to watch."""
    require(timeout >= 10, f"timeout={timeout} is too short: processes need up to 10 s to start")


def _validate_data(data: DataConfig) -> None:
    one_of("data.on_error", data.on_error, ["stop", "skip"])
    low, _ = scale_range(data.scale)
    require(
        low >= data.crop,
        f"data.scale={data.scale} is smaller than data.crop={data.crop}: no crop fits",
    )
    require(
        val_scale(data) >= data.crop,
        f"data.val_scale={data.val_scale} is smaller than data.crop={data.crop}: no crop fits",
    )


def _validate_amounts(config: TrainConfig) -> None:
    positive = {
        "epochs": config.epochs,
        "log_every": config.log_every,
        "batch_size": config.batch_size,
        "data.crop": config.data.crop,
        "max_steps": config.max_steps,
        "val_subset": config.val_subset,
        "val_every": config.val_every,
        "data.val_scale": config.data.val_scale,
        "schedule.patience": config.schedule.patience,
        "data.num_classes": config.data.num_classes,
    }
    for key, value in positive.items():
        require(value is None or value > 0, f"{key}={value} must be at least 1")
    require(0 <= config.dropout < 1, f"dropout={config.dropout} must be in [0, 1)")
    require(0 <= config.seed < 2**31, f"seed={config.seed} must be in [0, 2^31)")
    ends = [end for span in config.skip_steps for end in span]
    require(
        all(len(span) == 2 and 0 < span[0] <= span[1] for span in config.skip_steps)
        and ends == sorted(ends),
        f"skip_steps={config.skip_steps} must list spans [first, last] of steps, in order",
    )
    rates = config.schedule.rates
    require(len(rates) > 0 and min(rates) > 0, f"schedule.rates={rates} must be positive")
    require(
        config.schedule.rule == "plateau" or len(config.schedule.switch_epochs) == len(rates) - 1,
        f"schedule.switch_epochs={config.schedule.switch_epochs} must have one epoch fewer than "
        f"schedule.rates={rates} has rates",
    )


def validate_eval(config: EvalConfig) -> None:
    """Refuse what cannot be evaluated; raises UserError with one sentence."""
    if config.precision is not None:
        one_of("precision", config.precision, PRECISIONS)
    one_of("device", config.device, ["auto", "cpu", "cuda"])
    one_of("views", config.views, VIEWS)
    one_of("data.on_error", config.data.on_error, ["stop", "skip"])
    one_of("split", config.split, ["val", "test"])
    require(config.images != [], "images=[] names no image")
    require(
        config.subset is None or (config.split == "val" and config.images is None),
        "subset= is for validation images: a submission has a line for each test image",
    )
    _validate_loader(config.loader)
    require(config.batch_size > 0, f"batch_size={config.batch_size} must be at least 1")
    one_of("average", config.average, ["probabilities", "logits"])
    require(
        config.scales is None or (len(config.scales) > 0 and min(config.scales) > 0),
        f"scales={config.scales} must list shorter sides in pixels",
    )
    require(
        config.scales is None or len(set(config.scales)) == len(config.scales),
        f"scales={config.scales} names a scale twice",
    )
    require(
        not config.square or config.views in ("ten", "grid"),
        f"square=true needs views=ten or grid, not {config.views}",
    )
    require(
        not config.on_map or config.views in ("centre", "ten", "grid"),
        f"on_map=true needs views=centre, ten or grid: {config.views} is on the map anyway",
    )
    require(
        config.save_predictions is None or config.save_predictions.endswith(".npz"),
        f"save_predictions={config.save_predictions} must end in .npz",
    )
    require(
        config.out is None or config.out.endswith(".json"), f"out={config.out} must end in .json"
    )


def checkpoint_list(config: EvalConfig) -> list[str]:
    """The files that checkpoint= names, one or several; raises UserError for none, or one twice."""
    files = config.checkpoint if isinstance(config.checkpoint, list) else [config.checkpoint]
    names = [str(file) for file in files]
    require(len(names) > 0, "checkpoint=[] names no file")
    require(len(set(names)) == len(names), f"checkpoint={names} names a file twice")
    return names
