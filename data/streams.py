"""The batches of a run: a process's share of what training and validation see."""

from collections.abc import Callable, Generator

from configs.schema import TrainConfig
from configs.validate import scale_range, val_scale
from data.batch import Batch
from data.draws import Ints, centre_batches, training_batches
from data.index import ImageIndex
from data.load import load

OnEvent = Callable[[str], None]


def training_stream(
    config: TrainConfig, index: ImageIndex, share: slice, start: int, stop: int, on_event: OnEvent
) -> Generator[Batch]:
    """Rows `share` of the batches of steps start .. stop - 1, as Sec. 3 trains."""
    data, scale = config.data, scale_range(config.data.scale)
    draws = training_batches(config.seed, start, stop, config.batch_size, len(index), scale)
    mine = (batch.rows(share) for batch in draws)
    return load(index, mine, data.crop, config.loader, data.on_error, on_event)


def centre_stream(
    config: TrainConfig, index: ImageIndex, indices: Ints, batch_size: int, on_event: OnEvent
) -> Generator[Batch]:
    """Centre crops of the images `indices`, at the validation scale."""
    data = config.data
    draws = centre_batches(indices, val_scale(data), batch_size)
    return load(index, draws, data.crop, config.loader, data.on_error, on_event)
