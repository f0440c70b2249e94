"""The batches of a run: a process's share of what training and validation see."""

from collections.abc import Callable, Generator, Sequence

from configs.schema import TrainConfig
from configs.validate import scale_range, val_scale
from data.batch import Batch
from data.draws import Ints, centre_batches, training_draws
from data.loading import load
from data.sources.index import ImageIndex

OnEvent = Callable[[str], None]


def skipping(step: int, spans: Sequence[Sequence[int]]) -> Sequence[int] | None:
    """The span [first, last] of skip_steps that step `step`, counted from 1, lies in, if any."""
    return next((span for span in spans if span[0] <= step <= span[1]), None)


def training_stream(
    config: TrainConfig, index: ImageIndex, share: slice, start: int, stop: int, on_event: OnEvent
) -> Generator[Batch]:
    """Rows `share` of the batches of steps start .. stop - 1, as Sec. 3 trains."""
    data, scale = config.data, scale_range(config.data.scale)
    steps = (step for step in range(start, stop) if not skipping(step + 1, config.skip_steps))
    every = (training_draws(config.seed, s, config.batch_size, len(index), scale) for s in steps)
    mine = (draws.rows(share) for draws in every)
    return load(index, mine, data.crop, config.loader, data.on_error, on_event)


def centre_stream(
    config: TrainConfig, index: ImageIndex, indices: Ints, batch_size: int, on_event: OnEvent
) -> Generator[Batch]:
    """Centre crops of the images `indices`, at the validation scale."""
    data = config.data
    draws = centre_batches(indices, val_scale(data), batch_size)
    return load(index, draws, data.crop, config.loader, data.on_error, on_event)
