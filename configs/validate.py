"""What a configuration must satisfy before anything is built or written."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from common.errors import UserError
from configs.keys import keys_of
from configs.schema import DataConfig, EvalConfig, LoaderConfig, ModelConfig, TrainConfig


def require(condition: bool, sentence: str) -> None:
    """Raise UserError(sentence) unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def one_of(key: str, value: Any, choices: Sequence[str]) -> None:
    """Raise UserError unless the value of `key` is one of the choices."""
    require(value in choices, f"{key}={value} is unknown: choose from {', '.join(choices)}")


def _validate_keys(config: TrainConfig | EvalConfig) -> None:
    """Check each key against the schema's choices and least values."""
    for name, key in keys_of(type(config)).items():
        value = attrgetter(name)(config)
        require(value != "", f"{name}= is empty")
        if value is not None and key.choices:
            one_of(name, value, key.choices)
        if value is not None and key.least is not None:
            require(value >= key.least, f"{name}={value} must be at least {key.least}")


def validate(config: TrainConfig, num_processes: int) -> None:
    """Raise UserError, with one sentence, if this cannot be trained."""
    _validate_keys(config)
    require(
        "/" not in config.name and config.name not in (".", ".."),
        f"name={config.name} must be one folder's name: give the folder above as runs=FOLDER",
    )
    _validate_loader(config.loader)
    _validate_model(config.model)
    require(len(config.init.fc_std) == 3, f"init.fc_std={config.init.fc_std} must have 3 values")
    _validate_data(config.data)
    _validate_numbers(config)
    share, rest = divmod(config.batch_size, num_processes)
    require(
        rest == 0,
        f"batch_size={config.batch_size} is not divisible by {num_processes} processes",
    )
    require(
        config.parallel == "ddp" or all(width % num_processes == 0 for width in config.model.fc),
        f"parallel=hybrid divides the fc layers among the processes: {num_processes} does not "
        f"divide model.fc={config.model.fc}",
    )
    micro = config.images_at_once(num_processes)
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
    require(
        model.extra_convs == 0 or any(stage.convs > 1 for stage in model.stages),
        f"model.extra_convs={model.extra_convs} needs a stage of several convolutions",
    )
    for number, stage in enumerate(model.stages, 1):
        require(
            min(stage.filters, stage.convs, stage.kernel, stage.stride) > 0 and len(stage.pad) > 0,
            f"stage {number} of model {model.name} is empty or has no pad",
        )


def _validate_loader(loader: LoaderConfig) -> None:
    require(
        loader.workers is None or loader.workers >= (loader.name == "dali"),
        f"loader.workers={loader.workers} is too few",
    )


def validate_timeout(timeout: int) -> None:
    """Refuse a timeout that would end healthy jobs; called before the processes are watched."""
    require(timeout >= 10, f"timeout={timeout} is too short: processes need up to 10 s to start")


def _validate_data(data: DataConfig) -> None:
    ends = data.scale if isinstance(data.scale, list) else [data.scale, data.scale]
    require(
        len(ends) == 2 and all(isinstance(end, int) for end in ends) and ends[0] <= ends[1],
        f"data.scale={data.scale} must be a whole number or [low, high] with low <= high",
    )
    require(
        ends[0] >= data.crop,
        f"data.scale={data.scale} is smaller than data.crop={data.crop}: no crop fits",
    )
    require(
        data.validation_scale >= data.crop,
        f"data.val_scale={data.val_scale} is smaller than data.crop={data.crop}: no crop fits",
    )


def _validate_numbers(config: TrainConfig) -> None:
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
        f"schedule.rates={rates}",
    )


def validate_eval(config: EvalConfig) -> None:
    """Raise UserError, with one sentence, if this cannot be evaluated."""
    _validate_keys(config)
    _validate_loader(config.loader)
    files = config.checkpoints
    require(len(files) > 0, "checkpoint=[] names no file")
    require(len(set(files)) == len(files), f"checkpoint={files} names a file twice")
    require(config.images != [], "images=[] names no image")
    weights = config.weights or [1.0] * len(files)
    require(
        len(weights) == len(files) and min(weights) >= 0 and sum(weights) > 0,
        f"weights={config.weights} must be {len(files)} numbers, none negative",
    )
    require(
        config.split == "val" or config.data.on_error == "stop",
        "data.on_error=skip is not for split=test: a submission has a line for each image",
    )
    require(
        config.subset is None or (config.split == "val" and config.images is None),
        "subset= is for validation images: a submission has a line for each test image",
    )
    if (scales := config.scales) is not None:
        require(len(scales) > 0 and min(scales) > 0, f"scales={scales} must list sides in pixels")
        require(len(set(scales)) == len(scales), f"scales={scales} names a scale twice")
    require(
        not config.square or config.views in ("ten", "grid"),
        f"square=true needs views=ten or grid, not {config.views}",
    )
    require(
        not config.on_map or config.views in ("centre", "ten", "grid"),
        f"on_map=true needs views=centre, ten or grid: {config.views} uses the map anyway",
    )
    require(
        config.save_predictions is None or config.save_predictions.endswith(".npz"),
        f"save_predictions={config.save_predictions} must end in .npz",
    )
    require(
        config.out is None or config.out.endswith(".json"), f"out={config.out} must end in .json"
    )
