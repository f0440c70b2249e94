"""The DALI loader: decodes only the region that a crop needs, on CPU threads or on the GPU.

Threads read files ahead of the pipeline and compute each image's view; the pipeline decodes its
region. On a GPU the pipeline also resizes it. On the CPU other threads do (data.decoding.render),
which in training takes a fifth of DALI's time.

DALI decodes ordinary JPEGs. Everything else (other formats, CMYK, files without a proper end) is
rare in ImageNet, and DALI's decoders differ from Pillow there or accept truncated files. Pillow
decodes these, and DALI gets them uncompressed.
"""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.backend import ReleaseUnusedMemory  # type: ignore[attr-defined]
from nvidia.dali.plugin.pytorch import feed_ndarray

from common.errors import UserError
from common.machine import num_workers
from configs.schema import LoaderConfig
from data.decoding import Prepared, decode_rgb, plain_jpeg_size, prepare_image, render
from data.draws import Draws
from data.geometry import Place, View, region, view
from data.loading import Decoded, OnEvent, Request

_READERS = 8  # threads: network file systems answer slowly but many at a time
_MAX_FAILURES = 3  # of the pipeline, in a row, for which its files are blamed
# Pixels that a region decode on the GPU adds on each side: decoders interpolate colour from
# neighbouring samples, which are missing at a region's own edge. The CPU's takes care of that.
_GPU_MARGIN = 8
_RESIZED_TOGETHER = 8  # images that a thread resizes before it takes the next ones


@dataclass(frozen=True)
class _Input:
    """An encoded image, the region of it to decode, and what of that region to show."""

    file: npt.NDArray[np.uint8]  # [n] bytes
    start: Place
    end: Place
    view: View  # in the region's coordinates


@dataclass
class _Job:
    """A batch on its way."""

    draws: Draws
    inputs: list[Future[Prepared[_Input]]]
    by_pillow: bool

    def decoded(self, images: Any) -> Decoded:
        """The finished batch with these images."""
        inputs = [future.result() for future in self.inputs]
        shown = np.array([image.shown for image in inputs], np.int64)
        return Decoded(self.draws, images, shown, [bad for i in inputs for bad in i.replaced])


class Feeder:
    """Reads files ahead, hands batches to a pipeline, and knows which are inside it."""

    def __init__(
        self,
        request: Request,
        draws: Iterable[Draws],
        pool: ThreadPoolExecutor,
        *,
        margin: int | None,
        on_event: OnEvent,
    ) -> None:
        """margin: pixels to decode around each view; None: decode the whole image."""
        self._request, self._draws, self._pool = request, iter(draws), pool
        self._margin, self._on_event = margin, on_event
        self._ahead: deque[_Job] = deque()  # being read, or not yet taken
        self._inside: deque[_Job] = deque()  # in the pipeline, oldest first
        self._failures = 0  # of the pipeline, in a row
        self._first_failure = ""
        self._is_reported = False
        self.error: BaseException | None = None  # why there is no further batch

    def _prepare(self, data: bytes, draws: Draws, row: int, *, by_pillow: bool) -> _Input:
        """The pipeline's input to show an encoded file as row `row` of the draws says."""
        size = None if by_pillow else plain_jpeg_size(data)
        if size is None:
            image = decode_rgb(data)
            size = (image.height, image.width)
            data = b"P6 %d %d 255\n" % image.size + image.tobytes()  # an uncompressed PPM file
        height, width = size
        shown = view(height, width, draws, row, crop=self._request.crop, exact=self._request.exact)
        start, end = (0, 0), size
        if self._margin is not None:
            start, end = region(shown, height, width, margin=self._margin)
        return _Input(np.frombuffer(data, np.uint8), start, end, shown.inside(start))

    def _read(self, draws: Draws, *, by_pillow: bool) -> _Job:
        index, skip = self._request.index, self._request.skip
        inputs = []
        for row, i in enumerate(draws.indices):
            prepare = partial(self._prepare, draws=draws, row=row, by_pillow=by_pillow)
            inputs.append(self._pool.submit(prepare_image, index, int(i), prepare, skip=skip))
        return _Job(draws, inputs, by_pillow)

    def next_size(self) -> int:
        """Images in the next batch; 0: there is none."""
        prefetch = self._request.config.prefetch
        while len(self._ahead) <= prefetch and (draws := next(self._draws, None)) is not None:
            self._ahead.append(self._read(draws, by_pillow=False))
        return len(self._ahead[0].draws) if self._ahead else 0

    def take(self, max_size: int, names: list[str]) -> list[Any]:
        """The pipeline's inputs for the next batch, in the order of `names`.

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
        arrays = _arrays([future.result().value for future in job.inputs], job.draws)
        return [arrays[name] for name in names]

    def done(self) -> _Job:
        """Removes and returns the oldest batch inside the pipeline, which has come out."""
        job = self._inside.popleft()
        if not job.by_pillow or any(image.result().replaced for image in job.inputs):
            self._failures = 0
        elif not self._is_reported:
            self._on_event(f"Pillow decoded a batch on which DALI failed ({self._first_failure})")
            self._is_reported = True
        return job

    def retry(self, error: RuntimeError) -> None:
        """The pipeline failed: takes back the batches inside it, for Pillow to decode.

        A file that Pillow cannot decode either is then refused or replaced like any bad one. If
        Pillow decodes them all, the failure is reported, once. Raises `error` where the files
        cannot be the cause, as when memory runs out: Pillow has already decoded these batches, or
        batches of good files have failed several times in a row.
        """
        failed = list(self._inside)
        self._failures += 1
        if all(job.by_pillow for job in failed) or self._failures > _MAX_FAILURES:
            raise error
        self._first_failure = self._first_failure or " ".join(str(error).split())[:300]
        self._inside.clear()
        self._ahead.extendleft(self._read(job.draws, by_pillow=True) for job in reversed(failed))


def _arrays(inputs: list[_Input], draws: Draws) -> dict[str, Any]:
    """All that a pipeline may take for B images: B encoded files, and arrays [B, ...]."""
    views = [image.view for image in inputs]
    return {
        "file": [image.file for image in inputs],
        "start": np.array([image.start for image in inputs], np.int32),
        "end": np.array([image.end for image in inputs], np.int32),
        "view_start": np.array([shown.start for shown in views], np.int32),
        "view_end": np.array([shown.end for shown in views], np.int32),
        "size": np.array([shown.size for shown in views], np.float32),
        "window_start": np.array([shown.window for shown in views], np.int32),
        "window_shape": np.array([shown.shape for shown in views], np.int32),
        "flip": draws.flips.astype(np.int32),
    }


def build_pipeline(feeder: Feeder, config: LoaderConfig, *, gpu: bool, resize: bool) -> Pipeline:
    """The DALI graph: uint8 [h, w, 3] for each image, its region or, with `resize`, its view."""
    max_size, names = feeder.next_size(), ["file"]
    if config.decode == "region":
        names += ["start", "end"]
    if resize:
        names += ["view_start", "view_end", "size", "window_start", "window_shape", "flip"]
    pipeline = Pipeline(
        batch_size=max_size,
        num_threads=config.workers or num_workers(),
        device_id=torch.cuda.current_device() if gpu else None,
        prefetch_queue_depth=config.prefetch,
    )
    with pipeline:
        outputs = fn.external_source(
            source=lambda: feeder.take(max_size, names), num_outputs=len(names)
        )
        inputs = dict(zip(names, outputs, strict=True))
        options: dict[str, Any] = {
            "device": "mixed" if gpu else "cpu",
            "output_type": types.DALIImageType.RGB,
            "adjust_orientation": False,  # as in all published ImageNet results
            "jpeg_fancy_upsampling": True,  # as libjpeg; nvJPEG's own default differs
        }
        if config.decode == "region":
            images = fn.decoders.image_slice(
                inputs["file"], start=inputs["start"], end=inputs["end"], axis_names="HW", **options
            )
        else:  # a GPU's JPEG engine decodes no regions
            images = fn.decoders.image(inputs["file"], **options)
        pipeline.set_outputs(_resized(images, inputs) if resize else images)
    return pipeline


def _resized(images: Any, inputs: dict[str, Any]) -> Any:
    """data.decoding.render as a DALI graph."""
    view = fn.slice(images, start=inputs["view_start"], end=inputs["view_end"], axis_names="HW")
    linear = types.DALIInterpType.INTERP_LINEAR
    resized: Any = fn.resize(view, size=inputs["size"], interp_type=linear, antialias=True)
    window = fn.slice(
        resized, start=inputs["window_start"], shape=inputs["window_shape"], axis_names="HW"
    )
    return fn.flip(window, horizontal=inputs["flip"])


def _to_torch(images: Any, stream: torch.cuda.Stream, *, whole: bool) -> Any:
    """DALI's images as [B, crop, crop, 3], or a list of [h, w, 3].

    They are copied, on the stream on which DALI hands them over: DALI may then reuse its buffers,
    and neither library sees memory that the other still works on.
    """

    def copied(tensor: Any) -> torch.Tensor:
        target = torch.empty(tensor.shape(), dtype=torch.uint8, device=stream.device)
        return feed_ndarray(tensor, target, cuda_stream=stream)

    return [copied(image) for image in images] if whole else copied(images.as_tensor())


class _Resizing:
    """A batch that threads are resizing."""

    def __init__(
        self, job: _Job, images: Any, *, crop: int | None, pool: ThreadPoolExecutor
    ) -> None:
        self._job, self._images, rows = job, images, range(len(job.draws))
        self._shown: Any = [None] * len(rows)
        if crop is not None:
            shape, pinned = (len(rows), crop, crop, 3), torch.cuda.is_available()
            self._shown = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        self._parts = [
            pool.submit(self._resize, rows[first : first + _RESIZED_TOGETHER])
            for first in rows[::_RESIZED_TOGETHER]
        ]

    def _resize(self, rows: range) -> None:
        for row in rows:
            image = torch.from_dlpack(self._images[row])
            view, flip = self._job.inputs[row].result().value.view, bool(self._job.draws.flips[row])
            self._shown[row] = render(image, view, flip)

    def decoded(self) -> Decoded:
        """The finished batch; waits for the threads."""
        for part in self._parts:
            part.result()
        return self._job.decoded(self._shown)


def _run(
    feeder: Feeder, request: Request, *, gpu: bool, resizers: ThreadPoolExecutor
) -> Generator[Decoded]:
    """The next batches, as long as one pipeline can deliver them."""
    pipeline = build_pipeline(feeder, request.config, gpu=gpu, resize=gpu)
    resizing: deque[_Resizing] = deque()
    while True:
        stream = torch.cuda.current_stream() if gpu else None
        try:
            (images,) = pipeline.run(stream)
        except StopIteration:
            break
        except RuntimeError as error:
            feeder.retry(error)
            break
        job = feeder.done()
        if stream:
            yield job.decoded(_to_torch(images, stream, whole=request.crop is None))
            continue
        resizing.append(_Resizing(job, images, crop=request.crop, pool=resizers))
        if len(resizing) > 1:  # one is resized while the pipeline decodes the next
            yield resizing.popleft().decoded()
    for batch in resizing:
        yield batch.decoded()


def decode_batches(
    request: Request, draws: Iterable[Draws], on_event: OnEvent
) -> Generator[Decoded]:
    """For data.loading. With loader.device=gpu, CUDA tensors of torch's current stream.

    Otherwise crops are CPU tensors, in pinned memory if there is a GPU.
    """
    config = request.config
    gpu = config.device == "gpu" or (config.device == "auto" and torch.cuda.is_available())
    if gpu and not torch.cuda.is_available():
        raise UserError("loader.device=gpu, but there is no CUDA device: type loader.device=cpu")
    margin = None if config.decode == "whole" else _GPU_MARGIN if gpu else 0
    readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
    torch.get_num_threads()  # settles this thread's own number, before that of the pool's is set
    resizers = ThreadPoolExecutor(
        config.workers or num_workers(),
        thread_name_prefix="resize",
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    feeder = Feeder(request, draws, readers, margin=margin, on_event=on_event)
    try:
        # A pipeline ends at a batch larger than it was built for, or at a file that it fails on.
        while feeder.next_size() and not feeder.error:
            yield from _run(feeder, request, gpu=gpu, resizers=resizers)
        if feeder.error:
            raise feeder.error
    finally:
        readers.shutdown(cancel_futures=True)
        resizers.shutdown(cancel_futures=True)
        ReleaseUnusedMemory()  # DALI would keep it for its next pipeline, out of torch's reach
