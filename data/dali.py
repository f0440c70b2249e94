"""The DALI loader: decodes only the region a crop needs, on CPU threads or on the GPU.

Threads read files ahead of the pipeline and work out each image's rectangle, the pipeline decodes
that region and resizes it. DALI decodes ordinary JPEGs itself. Everything else (other formats,
CMYK, files that do not end as they should) is rare in ImageNet, and DALI's decoders differ from
Pillow there or accept what is cut short: Pillow decodes these, DALI gets them uncompressed.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.plugin.pytorch import feed_ndarray

from common.errors import UserError
from common.machine import num_cpus
from configs.schema import LoaderConfig
from data.decoding import Found, Replacements, as_ppm, decode_rgb, find_image, plain_jpeg_size
from data.draws import Draws
from data.geometry import region, view
from data.loading import Batch, make_batch
from data.sources.index import ImageIndex

_READERS = 8  # threads: network file systems answer slowly but many at a time

# What the pipeline takes for an image: the encoded file [n] uint8; start, shape of the region to
# decode, int32 [2]; start, end of the shown rectangle in the region, and the size to resize it
# to, float32 [2]. All in (y, x) order.
_Inputs = tuple[npt.NDArray[Any], ...]


@dataclass
class _Job:
    """A batch on its way."""

    draws: Draws
    files: list[Future[Found[_Inputs]]]
    by_pillow: bool


def _inputs(data: bytes, draws: Draws, row: int, crop: int | None, by_pillow: bool) -> _Inputs:
    """What the pipeline takes to show an encoded file as row `row` of the draws says."""
    size = None if by_pillow else plain_jpeg_size(data)
    if size is None:
        image = decode_rgb(data)
        size, data = (image.height, image.width), as_ppm(image)
    shown = view(*size, int(draws.scales[row]), draws.places[row], crop)
    start, end = region(shown, *size)
    roi_start, roi_end = np.array(shown.start) - start, np.array(shown.end) - start
    if draws.flips[row]:
        roi_start[1], roi_end[1] = roi_end[1], roi_start[1]  # DALI mirrors a reversed rectangle
    return (
        np.frombuffer(data, np.uint8),
        start.astype(np.int32),
        (end - start).astype(np.int32),
        roi_start.astype(np.float32),
        roi_end.astype(np.float32),
        np.array(shown.size, np.float32),
    )


class _Feeder:
    """Reads files ahead and hands batches to a pipeline; knows which are inside it."""

    def __init__(
        self,
        index: ImageIndex,
        draws: Iterable[Draws],
        crop: int | None,
        config: LoaderConfig,
        on_error: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._index, self._draws, self._crop = index, iter(draws), crop
        self._depth, self._on_error, self._pool = config.prefetch, on_error, pool
        self._ahead: deque[_Job] = deque()  # being read, or not yet taken
        self._inside: deque[_Job] = deque()  # in the pipeline, oldest first
        self.error: BaseException | None = None  # why there is no further batch

    def _read(self, draws: Draws, by_pillow: bool) -> _Job:
        files = []
        for row, i in enumerate(draws.indices):
            prepare = partial(_inputs, draws=draws, row=row, crop=self._crop, by_pillow=by_pillow)
            files.append(
                self._pool.submit(find_image, self._index, int(i), prepare, self._on_error)
            )
        return _Job(draws, files, by_pillow)

    def next_size(self) -> int:
        """Images in the next batch; 0: there is none."""
        while len(self._ahead) <= self._depth and (draws := next(self._draws, None)) is not None:
            self._ahead.append(self._read(draws, by_pillow=False))
        return len(self._ahead[0].draws) if self._ahead else 0

    def take(self, max_size: int) -> list[Any]:
        """The pipeline's inputs for the next batch. StopIteration: none that it could take."""
        if self.error or not 0 < self.next_size() <= max_size:
            raise StopIteration
        job = self._ahead[0]
        # Not raised here, where its traceback would keep the pipeline alive, but once the
        # batches before this one are out.
        self.error = next((error for file in job.files if (error := file.exception())), None)
        if self.error:
            raise StopIteration
        self._inside.append(self._ahead.popleft())
        files, *geometry = zip(*(file.result().value for file in job.files), strict=True)
        return [list(files), *map(np.stack, geometry)]

    def done(self) -> _Job:
        """The oldest batch inside the pipeline has come out."""
        return self._inside.popleft()

    def retry(self, error: RuntimeError) -> None:
        """The pipeline broke: take back what was inside, and let Pillow decode it instead.

        A file that neither can decode is then refused or replaced like any bad one. Raises the
        error itself if Pillow has already decoded these batches: then it is not the files.
        """
        broken = list(self._inside)
        if not broken or all(job.by_pillow for job in broken):
            raise error
        self._inside.clear()
        self._ahead.extendleft(self._read(job.draws, by_pillow=True) for job in reversed(broken))


def _pipeline(
    take: Callable[[int], list[Any]], max_size: int, config: LoaderConfig, gpu: bool
) -> Pipeline:
    """The DALI graph: region decode, resize, mirror; uint8 [h, w, 3] for each image."""
    pipeline = Pipeline(
        batch_size=max_size,
        num_threads=config.workers or num_cpus(),
        device_id=torch.cuda.current_device() if gpu else None,
        prefetch_queue_depth=config.prefetch,
    )
    with pipeline:
        files, start, shape, roi_start, roi_end, shown = fn.external_source(
            source=lambda: take(max_size), num_outputs=6
        )
        images = fn.decoders.image_slice(
            files,
            start=start,
            shape=shape,
            axis_names="HW",
            device="mixed" if gpu else "cpu",
            output_type=types.DALIImageType.RGB,
            adjust_orientation=False,  # as all published ImageNet results
            jpeg_fancy_upsampling=True,  # nvJPEG's own default is not what libjpeg does
        )
        resized = fn.resize(
            images,
            size=shown,
            roi_start=roi_start,
            roi_end=roi_end,
            interp_type=types.DALIInterpType.INTERP_LINEAR,
            antialias=True,
        )
        pipeline.set_outputs(resized)
    return pipeline


def _to_torch(images: Any, whole: bool, stream: torch.cuda.Stream | None) -> Any:
    """DALI's images as [B, crop, crop, 3], or a list of [h, w, 3].

    They are copied, on the stream that DALI handed them over on, so that it may reuse its
    buffers: neither it nor torch ever sees memory that the other still works on.
    """
    device = "cpu" if stream is None else stream.device

    def copied(tensor: Any) -> torch.Tensor:
        target = torch.empty(tensor.shape(), dtype=torch.uint8, device=device)
        return feed_ndarray(tensor, target, cuda_stream=stream)

    return [copied(image) for image in images] if whole else copied(images.as_tensor())


def _run(
    feeder: _Feeder, config: LoaderConfig, gpu: bool, whole: bool
) -> Generator[tuple[_Job, Any], None, None]:
    """The next batches with their images, until one pipeline cannot give any more."""
    pipeline = _pipeline(feeder.take, feeder.next_size(), config, gpu)
    while True:
        stream = torch.cuda.current_stream() if gpu else None
        try:
            (images,) = pipeline.run(stream)
        except StopIteration:
            return
        except RuntimeError as error:
            feeder.retry(error)
            return
        yield feeder.done(), _to_torch(images, whole, stream)


def batches(
    index: ImageIndex,
    draws: Iterable[Draws],
    crop: int | None,
    config: LoaderConfig,
    on_error: str,
    on_event: Callable[[str], None],
) -> Generator[Batch, None, None]:
    """See data.loading.load. With a GPU, images are CUDA tensors of torch's current stream."""
    gpu = config.device == "gpu" or (config.device == "auto" and torch.cuda.is_available())
    if gpu and not torch.cuda.is_available():
        raise UserError("loader.device=gpu, but there is no CUDA device: type loader.device=cpu")
    replacements = Replacements(index, on_event)
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
    try:
        feeder = _Feeder(index, draws, crop, config, on_error, pool)
        # A pipeline ends where a batch is larger than it was built for, or a file breaks it.
        while feeder.next_size() and not feeder.error:
            for job, images in _run(feeder, config, gpu, whole=crop is None):
                found = [file.result() for file in job.files]
                for one in found:
                    replacements.tell(one.replaced)
                shown = np.array([one.shown for one in found], np.int64)
                yield make_batch(images, index.labels[shown], job.draws, shown)
        if feeder.error:
            raise feeder.error
    finally:
        pool.shutdown(cancel_futures=True)
