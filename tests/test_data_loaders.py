"""Both loaders against a literal reading of Sec. 3 with Pillow, and against users' files."""

import io
import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from configs.errors import UserError
from configs.schema import LoaderConfig
from data.batch import Batch
from data.draws import PLACE_ONE, Draws, centre_batches, training_batches
from data.index import ImageIndex, scan_folder
from data.load import load

Pixels = npt.NDArray[np.uint8]
LOADERS = ["dali", "torchvision"]
CROP = 224
# Height and width: ordinary, portrait, odd, extreme aspect ratios, far too large, far too small.
SIZES = [(375, 500), (500, 333), (301, 257), (97, 1031), (900, 64), (1201, 1600), (61, 83), (9, 7)]


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """A smooth image with edges and texture, [height, width, 3]: no two places look alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 90 * np.sin(x / (9 + 5 * c) + seed) * np.cos(y / (13 - 3 * c)) for c in range(3)]
    pixels = np.stack(waves, axis=-1) + 40 * ((x // 16 + y // 16) % 2)[..., None]
    pixels += rng.normal(0, 12, (height, width, 1))
    return pixels.clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(height: int, width: int, seed: int = 0, **options: object) -> bytes:
    return encoded(Image.fromarray(picture(height, width, seed)), quality=92, **options)


@pytest.fixture
def make_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ImageIndex]:
    """An index of the given files, in two classes that take turns."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(files: list[bytes]) -> ImageIndex:
        for i, data in enumerate(files):
            folder = tmp_path / "set" / "train" / ("first" if i < len(files) / 2 else "second")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:03d}.JPEG").write_bytes(data)
        return scan_folder(tmp_path / "set", "train")

    return make


def some_draws(
    indices: Iterable[int],
    scales: int | list[int] = 256,
    places: list[tuple[float, float]] | None = None,
    flips: list[bool] | None = None,
) -> Draws:
    """Draws of these images; places in [0, 1], by default the centre."""
    count = len(indices := list(indices))
    places = places or [(0.5, 0.5)] * count
    return Draws(
        np.array(indices, np.int64),
        np.broadcast_to(np.array(scales, np.int64), count),
        np.array([[min(int(p * PLACE_ONE), PLACE_ONE - 1) for p in yx] for yx in places], np.int64),
        np.array(flips or [False] * count),
        np.arange(3 * count, dtype=np.float32).reshape(count, 3),
        np.arange(count, dtype=np.int64) + 1000,
    )


def read(
    name: str,
    index: ImageIndex,
    draws: Iterable[Draws],
    crop: int | None = CROP,
    on_error: str = "stop",
    on_event: Callable[[str], None] = pytest.fail,
    workers: int | None = None,
) -> Iterator[Batch]:
    if workers is None:
        workers = 2 if name == "dali" else 0
    config = LoaderConfig(name=name, workers=workers, device="cpu")
    return load(index, draws, crop, config, on_error, on_event)


def literal(data: bytes, draws: Draws, row: int, crop: int | None = CROP) -> npt.NDArray[np.int64]:
    """Resize the whole image, then crop, then mirror, with Pillow alone."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = int(draws.scales[row])
    width, height = (side * scale // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    if crop is not None:
        y, x = (int(p) / PLACE_ONE for p in draws.places[row])
        top, left = int(y * (height - crop + 1)), int(x * (width - crop + 1))
        image = image.crop((left, top, left + crop, top + crop))
    if draws.flips[row]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).astype(np.int64)


def difference(one: torch.Tensor | npt.NDArray, other: torch.Tensor | npt.NDArray) -> float:
    """Mean absolute difference in grey levels; the shapes must be equal."""
    a, b = np.asarray(one).astype(np.int64), np.asarray(other).astype(np.int64)
    assert a.shape == b.shape
    return float(np.abs(a - b).mean())


def many_views(num_images: int) -> list[Draws]:
    """Each image at every corner, up- and downscaled, mirrored and not; and random draws."""
    corners = [
        some_draws(range(num_images), scale, [corner] * num_images, [flip] * num_images)
        for corner, scale, flip in zip(
            itertools.product((0.0, 1.0), repeat=2),
            (224, 225, 384, 512),
            (True, False) * 2,
            strict=True,
        )
    ]
    return corners + list(training_batches(3, 0, 4, num_images, num_images, (256, 512)))


@pytest.mark.parametrize("name", LOADERS)
def test_a_crop_is_what_resizing_everything_and_cropping_gives(name, make_index):
    files = [jpeg(*size, seed) for seed, size in enumerate(SIZES)]
    draws = many_views(len(files))
    for batch, drawn in zip(read(name, make_index(files), draws), draws, strict=True):
        assert batch.images.dtype == torch.uint8
        for row, i in enumerate(drawn.indices):
            error = difference(batch.images[row], literal(files[i], drawn, row))
            assert error < 0.3, (SIZES[i], drawn.scales[row], drawn.places[row])


def test_loaders_agree(make_index):
    files = [jpeg(*size, seed) for seed, size in enumerate(SIZES)]
    index, draws = make_index(files), many_views(len(SIZES))
    for one, other in zip(*(read(name, index, draws) for name in LOADERS), strict=True):
        for a, b in zip(one.images, other.images, strict=True):
            assert difference(a, b) < 0.5
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.colours, other.colours)
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.indices, other.indices)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_decoding_a_region_gives_the_pixels_of_decoding_everything(
    subsampling, make_index, monkeypatch
):
    import data.dali

    sizes = [(375, 500), (1201, 1600), (301, 257)]
    files = [jpeg(*size, seed, subsampling=subsampling) for seed, size in enumerate(sizes)]
    files.append(jpeg(375, 500, 9, subsampling=subsampling, progressive=True))
    index, draws = make_index(files), many_views(len(files))
    regions = [batch.images.clone() for batch in read("dali", index, draws)]
    monkeypatch.setattr(
        data.dali, "region", lambda _, *size: (np.zeros(2, np.int64), np.array(size))
    )
    for region, batch in zip(regions, read("dali", index, draws), strict=True):
        error = (region.int() - batch.images.int()).abs()
        # DALI computes places in float32: a value that lies on the edge may round either way.
        assert error.max() <= 1
        assert error.float().mean() < 0.003


@pytest.mark.parametrize("name", LOADERS)
def test_whole_images_keep_their_own_sizes(name, make_index):
    files = [jpeg(*size, seed) for seed, size in enumerate(SIZES)]
    draws = [
        some_draws(range(len(files)), [256, 300, 256, 224, 256, 480, 96, 30]),
        some_draws([2, 0], [100, 64], flips=[True, False]),
    ]
    for batch, drawn in zip(read(name, make_index(files), draws, crop=None), draws, strict=True):
        assert isinstance(batch.images, list)
        for row, i in enumerate(drawn.indices):
            assert difference(batch.images[row], literal(files[i], drawn, row, None)) < 0.3, SIZES[
                i
            ]


def odd_files() -> dict[str, bytes]:
    """Kinds of files that ImageNet or a user's folder holds, all named .JPEG."""
    rgb = Image.fromarray(picture(300, 400, 5))
    ycck = encoded(rgb.convert("CMYK"), quality=95)
    deep = (picture(300, 400)[..., 0].astype(np.uint16) << 8) + 77
    rotated = Image.Exif()
    rotated[0x0112] = 6
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(picture(300, 400, 8)[..., 0]))
    whole = encoded(rgb, quality=95)
    return {
        "grey": encoded(rgb.convert("L"), quality=95),
        "grey png": encoded(rgb.convert("L"), "PNG"),
        "grey alpha png": encoded(alpha.convert("LA"), "PNG"),
        "bilevel png": encoded(rgb.convert("1"), "PNG"),
        "cmyk": ycck,
        "cmyk that is not inverted": ycck.replace(b"Adobe", b"Adobf"),
        "progressive": encoded(rgb, quality=95, progressive=True),
        "exif rotated": encoded(rgb, quality=95, exif=rotated),
        "rgb, not ycc": encoded(rgb, quality=95, keep_rgb=True),
        "restart markers": encoded(rgb, quality=95, restart_marker_blocks=7),
        "bytes after the end": whole + b"\0\0trailing",
        "png": encoded(rgb, "PNG"),
        "palette png": encoded(rgb.quantize(64), "PNG"),
        "palette png, transparent": encoded(rgb.quantize(64), "PNG", transparency=bytes(range(64))),
        "alpha png": encoded(alpha, "PNG"),
        "16-bit png": encoded(Image.fromarray(deep), "PNG"),
        "bmp": encoded(rgb, "BMP"),
        "webp": encoded(rgb, "WEBP", quality=90),
        "alpha webp": encoded(alpha, "WEBP", lossless=True),
    }


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # from literal()
def test_odd_files_are_rgb_and_agree(make_index):
    files = odd_files()
    index, draws = make_index(list(files.values())), some_draws(range(len(files)), 280)
    ours = {name: next(iter(read(name, index, [draws]))).images for name in LOADERS}
    assert ours["dali"].shape == (len(files), CROP, CROP, 3)
    for row, (kind, data) in enumerate(files.items()):
        assert difference(ours["dali"][row], ours["torchvision"][row]) < 0.5, kind
        if kind == "16-bit png":  # Pillow's own conversion clips: the high byte is meant
            data = encoded(Image.fromarray(picture(300, 400)[..., 0]), "PNG")
        assert difference(ours["torchvision"][row], literal(data, draws, row)) < 0.3, kind


def bad_files() -> dict[str, bytes]:
    whole = jpeg(300, 400, 4)
    tables = bytearray(whole)
    at = tables.index(b"\xff\xc4") + 5
    tables[at : at + 16] = b"\xff" * 16  # no such Huffman table
    png = encoded(Image.fromarray(picture(300, 400)), "PNG")
    bomb = bytearray(whole)
    at = bomb.index(b"\xff\xc0")
    bomb[at + 5 : at + 9] = b"\xff\xff\xff\xff"  # 65535 x 65535 pixels
    flat = bytearray(whole)
    flat[at + 5 : at + 7] = b"\0\0"
    return {
        "empty": b"",
        "text": b"<html>404</html>" * 99,
        "cut in the pixels": whole[: len(whole) * 9 // 10],
        "cut in the header": whole[:300],
        "cut by two bytes": whole[:-2] + b"",
        "cut progressive": jpeg(300, 400, 4, progressive=True)[:-900],
        "broken tables": bytes(tables),
        "cut png": png[: len(png) // 2],
        "cut webp": encoded(Image.fromarray(picture(300, 400)), "WEBP")[:-500],
        "cut bmp": encoded(Image.fromarray(picture(300, 400)), "BMP")[:-5000],
        "bomb": bytes(bomb),
        "no rows": bytes(flat),
    }


BAD = bad_files()


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", LOADERS)
def test_a_bad_file_stops_with_its_path(name, kind, make_index):
    good = jpeg(300, 400)
    index = make_index([good, good, BAD[kind], good])
    batches = read(name, index, [some_draws([0, 1]), some_draws([1, 2, 3])])
    assert len(next(batches).labels) == 2
    with pytest.raises(UserError) as refused:
        next(batches)
    assert index.path(2) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bad_files_are_replaced_alike(make_index):
    good = [jpeg(300, 400, seed) for seed in range(3)]
    files = [good[0], *BAD.values(), good[1], good[2], b"no image"]
    index, last_bad = make_index(files), len(files) - 1
    first_good, count = len(files) - 3, len(BAD)
    wish = [list(range(len(files))), [2, last_bad], [0, first_good]]
    draws = [some_draws(indices, 256, [(0.2, 0.7)] * len(indices)) for indices in wish]
    instead = dict.fromkeys(range(1, count + 1), first_good) | {last_bad: 0}
    for name in LOADERS:
        events: list[str] = []
        batches = list(read(name, index, draws, on_error="skip", on_event=events.append))
        for batch, drawn, indices in zip(batches, draws, wish, strict=True):
            shown = [instead.get(i, i) for i in indices]
            assert batch.indices.tolist() == shown
            assert batch.labels.tolist() == index.labels[shown].tolist()
            for row, i in enumerate(shown):
                assert difference(batch.images[row], literal(files[i], drawn, row)) < 0.3
        assert len(events) == len(instead)
        for bad, shown_instead in instead.items():
            told = [event for event in events if f"image {index.path(bad)} " in event]
            assert len(told) == 1
            assert told[0].endswith(f"replaced by {index.path(shown_instead)}")


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_nothing_but_bad_files(name, on_error, make_index):
    index = make_index([b"", b"text", BAD["broken tables"]])
    with pytest.raises(UserError, match=r"000\.JPEG"):
        next(read(name, index, [some_draws([0, 1])], on_error=on_error, on_event=print))


@pytest.mark.parametrize("name", LOADERS)
def test_a_file_that_vanished_is_a_bad_file(name, make_index):
    index = make_index([jpeg(300, 400), jpeg(300, 400)])
    Path(index.path(1)).unlink()
    with pytest.raises(UserError, match=r"001\.JPEG.*No such file"):
        next(read(name, index, [some_draws([1])]))


def test_a_file_that_only_pillow_decodes_is_decoded_by_it(make_index, monkeypatch):
    """DALI refuses the bytes (here: it is made to think they are an ordinary JPEG's)."""
    import data.dali

    files = [jpeg(300, 400), encoded(Image.fromarray(picture(300, 400, 2)), "GIF"), jpeg(300, 400)]
    monkeypatch.setattr(data.dali, "plain_jpeg_size", lambda _: (300, 400))
    draws = [some_draws([0]), some_draws([2, 1, 0]), some_draws([2, 0])]
    for batch, drawn in zip(read("dali", make_index(files), draws), draws, strict=True):
        for row, i in enumerate(drawn.indices):
            assert difference(batch.images[row], literal(files[i], drawn, row)) < 0.3


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("workers", [None, 2])
def test_batches_of_any_size_come_in_order(name, workers, make_index):
    files = [jpeg(40 + 3 * i, 60, i) for i in range(5)]
    counts = [2, 1, 5, 3, 8, 1, 1, 4]
    draws = [some_draws([(n + k) % 5 for k in range(n)], 48) for n in counts]
    index = make_index(files)
    batches = list(read(name, index, iter(draws), crop=32, workers=workers))
    assert [len(batch.images) for batch in batches] == counts
    for batch, drawn in zip(batches, draws, strict=True):
        assert batch.indices.tolist() == drawn.indices.tolist()
        assert batch.labels.tolist() == index.labels[drawn.indices].tolist()
        assert batch.keys.tolist() == drawn.keys.tolist()
        assert batch.colours.tolist() == drawn.colours.tolist()
        for row, i in enumerate(drawn.indices):
            assert difference(batch.images[row], literal(files[i], drawn, row, 32)) < 0.3


@pytest.mark.parametrize("name", LOADERS)
def test_every_validation_image_comes_once(name, make_index):
    index = make_index([jpeg(40, 60, i) for i in range(7)])
    batches = list(read(name, index, centre_batches(np.arange(7), 36, 3), crop=32))
    assert [batch.indices.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(read(name, index, [], crop=32)) == []


@pytest.mark.parametrize("name", LOADERS)
def test_starting_in_the_middle_gives_the_same_bytes(name, make_index):
    index = make_index([jpeg(50 + 7 * i, 90 - 5 * i, i) for i in range(6)])

    def steps(start: int) -> list[torch.Tensor]:
        draws = training_batches(7, start, 6, 4, len(index), (40, 80))
        return [batch.images for batch in read(name, index, draws, crop=32)]

    whole = steps(0)
    for start in (1, 4):
        for one, again in zip(whole[start:], steps(start), strict=True):
            assert torch.equal(one, again)


def alive() -> tuple[set[int], set[threading.Thread]]:
    children = {child.pid for child in multiprocessing.active_children()}
    return children, set(threading.enumerate())


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("ending", ["close", "error", "forgotten"])
def test_an_early_end_leaves_nothing_running(name, ending, make_index):
    index = make_index([jpeg(40, 60, i) for i in range(4)] + [b""])
    before, threads = alive(), native_threads()

    def endless() -> Iterator[Draws]:
        for step in itertools.count():
            yield some_draws([4] if ending == "error" and step == 5 else [0, 1, 2, 3], 48)

    batches = read(name, index, endless(), crop=32, workers=2)
    for _ in range(3):
        next(batches)
    assert native_threads() > threads or alive()[0] > before[0]
    if ending == "close":
        batches.close()
    elif ending == "error":
        with pytest.raises(UserError):
            list(batches)
    else:
        del batches
    deadline = time.monotonic() + 10
    while (alive() != before or native_threads() > threads) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive() == before
    assert native_threads() <= threads


def native_threads() -> int:
    """Threads of this process, DALI's too."""
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize("name", LOADERS)
def test_a_crop_larger_than_the_image_is_refused(name, make_index):
    with pytest.raises(ValueError, match="crop of 224"):
        next(read(name, make_index([jpeg(300, 400)]), [some_draws([0], 200)]))


def test_unknown_loader(make_index):
    with pytest.raises(UserError, match="dali, torchvision"):
        next(read("ffmpeg", make_index([jpeg(30, 40)]), []))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(make_index):
    config = LoaderConfig(name="dali", device="gpu")
    with pytest.raises(UserError, match="no CUDA device"):
        next(load(make_index([jpeg(30, 40)]), [], 32, config, "stop", print))
