"""The DALI loader: decodes the region that a crop needs, on CPU threads or on the GPU.

Threads read files ahead of the pipeline and compute each image's rectangle; the pipeline decodes
that region and resizes it. DALI decodes ordinary JPEGs itself. Everything else (other formats,
CMYK, files without a proper end) is rare in ImageNet, and DALI's decoders differ from Pillow there
or accept truncated files: Pillow decodes these, and DALI gets them uncompressed.
"""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
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
from data.decoding import Prepared, as_ppm, decode_rgb, plain_jpeg_size, prepare_image
from data.draws import Draws
from data.geometry import region, view
from data.loading import Decoded
from data.sources.index import ImageIndex

_READERS = 8  # threads: network file systems answer slowly but many at a time
_MAX_FAILURES = 3  # of the pipeline, in a row, for which its files are blamed


@dataclass(frozen=True)
class _Input:
    """What the pipeline takes for an image. All but the file in (y, x) order."""

    file: npt.NDArray[np.uint8]  # [n] encoded
    region_start: npt.NDArray[np.int32]  # [2] of the region to decode
    region_shape: npt.NDArray[np.int32]  # [2]
    shown_start: npt.NDArray[np.float32]  # [2] of the shown rectangle, in the region
    shown_end: npt.NDArray[np.float32]  # [2]
    size: npt.NDArray[np.float32]  # [2] that the rectangle is resized to


@dataclass
class _Job:
    """A batch on its way."""

    draws: Draws
    inputs: list[Future[Prepared[_Input]]]
    by_pillow: bool


def _prepare(
    data: bytes, draws: Draws, row: int, *, crop: int | None, by_pillow: bool, whole: bool
) -> _Input:
    """The pipeline's input to show an encoded file as row `row` of the draws says.

    whole: all of the file is decoded, not only the region that the resize reads.
    """
    size = None if by_pillow else plain_jpeg_size(data)
    if size is None:
        image = decode_rgb(data)
        size, data = (image.height, image.width), as_ppm(image)
    scale, position = int(draws.scales[row]), draws.positions[row]
    shown = view(*size, scale=scale, position=position, crop=crop)
    start, end = (np.zeros(2, np.int64), np.array(size)) if whole else region(shown, *size)
    shown_start, shown_end = np.array(shown.start) - start, np.array(shown.end) - start
    if draws.flips[row]:  # DALI flips a rectangle whose ends are swapped
        shown_start[1], shown_end[1] = shown_end[1], shown_start[1]
    return _Input(
        file=np.frombuffer(data, np.uint8),
        region_start=start.astype(np.int32),
        region_shape=(end - start).astype(np.int32),
        shown_start=shown_start.astype(np.float32),
        shown_end=shown_end.astype(np.float32),
        size=np.array(shown.size, np.float32),
    )


class _Feeder:
    """Reads files ahead and hands batches to a pipeline; knows which are inside it."""

    def __init__(
        self,
        index: ImageIndex,
        draws: Iterable[Draws],
        pool: ThreadPoolExecutor,
        *,
        crop: int | None,
        config: LoaderConfig,
        skip: bool,
    ) -> None:
        self._index, self._draws, self._pool = index, iter(draws), pool
        self._crop, self._prefetch, self._skip = crop, config.prefetch, skip
        self._whole, self._failures = config.decode == "whole", 0
        # What the pipeline takes, fields of _Input.
        self.names = [
            field.name
            for field in fields(_Input)
            if not (self._whole and field.name.startswith("region"))
        ]
        self._ahead: deque[_Job] = deque()  # being read, or not yet taken
        self._inside: deque[_Job] = deque()  # in the pipeline, oldest first
        self.error: BaseException | None = None  # why there is no further batch

    def _read(self, draws: Draws, by_pillow: bool) -> _Job:
        inputs = []
        for row, i in enumerate(draws.indices):
            prepare = partial(
                _prepare,
                draws=draws,
                row=row,
                crop=self._crop,
                by_pillow=by_pillow,
                whole=self._whole,
            )
            read = partial(prepare_image, self._index, int(i), prepare, skip=self._skip)
            inputs.append(self._pool.submit(read))
        return _Job(draws, inputs, by_pillow)

    def next_size(self) -> int:
        """Images in the next batch; 0: there is none."""
        while len(self._ahead) <= self._prefetch and (draws := next(self._draws, None)) is not None:
            self._ahead.append(self._read(draws, by_pillow=False))
        return len(self._ahead[0].draws) if self._ahead else 0

    def take(self, max_size: int) -> list[Any]:
        """The pipeline's inputs for the next batch, one list for each of `names`.

        Raises StopIteration if there is no batch, or only one of more than `max_size` images.
        """
        if self.error or not 0 < self.next_size() <= max_size:
            raise StopIteration
        job = self._ahead[0]
        # Not raised here, where its traceback would keep the pipeline alive, but once the
        # batches before this one are out.
        self.error = next((error for i in job.inputs if (error := i.exception())), None)
        if self.error:
            raise StopIteration
        self._inside.append(self._ahead.popleft())
        inputs = [future.result().value for future in job.inputs]
        return [[getattr(i, name) for i in inputs] for name in self.names]

    def done(self) -> _Job:
        """Removes and returns the oldest batch inside the pipeline, which has come out."""
        job = self._inside.popleft()
        if not job.by_pillow:
            self._failures = 0
        return job

    def retry(self, error: RuntimeError) -> None:
        """The pipeline failed: take back what was inside, and let Pillow decode it instead.

        A file that neither can decode is then refused or replaced like any bad one. Raises `error`
        where the files are not the cause, as when memory runs out: Pillow has already decoded these
        batches, or nothing but Pillow's has come through for some time.
        """
        failed = list(self._inside)
        self._failures += 1
        if not failed or all(job.by_pillow for job in failed) or self._failures > _MAX_FAILURES:
            raise error
        self._inside.clear()
        self._ahead.extendleft(self._read(job.draws, by_pillow=True) for job in reversed(failed))


def _pipeline(feeder: _Feeder, config: LoaderConfig, gpu: bool) -> Pipeline:
    """The DALI graph: decode a region, resize, flip; uint8 [h, w, 3] for each image."""
    max_size = feeder.next_size()
    pipeline = Pipeline(
        batch_size=max_size,
        num_threads=config.workers or num_cpus(),
        device_id=torch.cuda.current_device() if gpu else None,
        prefetch_queue_depth=config.prefetch,
    )
    with pipeline:
        outputs = fn.external_source(
            source=lambda: feeder.take(max_size), num_outputs=len(feeder.names)
        )
        inputs = dict(zip(feeder.names, outputs, strict=True))
        options: dict[str, Any] = {
            "device": "mixed" if gpu else "cpu",
            "output_type": types.DALIImageType.RGB,
            "adjust_orientation": False,  # as in all published ImageNet results
            "jpeg_fancy_upsampling": True,  # as libjpeg; nvJPEG's own default differs
        }
        if config.decode == "whole":  # a GPU's JPEG engine decodes no regions
            images = fn.decoders.image(inputs["file"], **options)
        else:
            images = fn.decoders.image_slice(
                inputs["file"],
                start=inputs["region_start"],
                shape=inputs["region_shape"],
                axis_names="HW",
                **options,
            )
        resized = fn.resize(
            images,
            size=inputs["size"],
            roi_start=inputs["shown_start"],
            roi_end=inputs["shown_end"],
            interp_type=types.DALIInterpType.INTERP_LINEAR,
            antialias=True,
        )
        pipeline.set_outputs(resized)
    return pipeline


def _to_torch(images: Any, whole: bool, stream: torch.cuda.Stream | None) -> Any:
    """DALI's images as [B, crop, crop, 3], or a list of [h, w, 3].

    They are copied, on the stream on which DALI hands them over: DALI may then reuse its buffers,
    and neither library sees memory that the other still works on.
    """
    device = "cpu" if stream is None else stream.device

    def copied(tensor: Any) -> torch.Tensor:
        target = torch.empty(tensor.shape(), dtype=torch.uint8, device=device)
        return feed_ndarray(tensor, target, cuda_stream=stream)

    return [copied(image) for image in images] if whole else copied(images.as_tensor())


def _run(
    feeder: _Feeder, config: LoaderConfig, *, gpu: bool, whole: bool
) -> Generator[tuple[_Job, Any]]:
    """The next batches with their images, as long as one pipeline can deliver them."""
    pipeline = _pipeline(feeder, config, gpu)
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


def decode_batches(
    index: ImageIndex,
    draws: Iterable[Draws],
    *,
    crop: int | None,
    config: LoaderConfig,
    skip: bool,
) -> Generator[Decoded]:
    """For data.loading. With a GPU, images are CUDA tensors of torch's current stream."""
    gpu = config.device == "gpu" or (config.device == "auto" and torch.cuda.is_available())
    if gpu and not torch.cuda.is_available():
        raise UserError("loader.device=gpu, but there is no CUDA device: type loader.device=cpu")
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
    try:
        feeder = _Feeder(index, draws, pool, crop=crop, config=config, skip=skip)
        # A pipeline ends at a batch larger than it was built for, or at a file that it fails on.
        while feeder.next_size() and not feeder.error:
            for job, images in _run(feeder, config, gpu=gpu, whole=crop is None):
                inputs = [future.result() for future in job.inputs]
                shown = np.array([image.shown for image in inputs], np.int64)
                replaced = [bad for image in inputs for bad in image.replaced]
                yield Decoded(job.draws, images, shown, replaced)
        if feeder.error:
            raise feeder.error
    finally:
        pool.shutdown(cancel_futures=True)
