"""Odd and bad image files, with both loaders."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from data.sources.index import ImageIndex
from tests.conftest import run_program
from tests.pictures import (
    CROP,
    LOADERS,
    difference,
    encoded,
    jpeg,
    literal,
    picture,
    read,
    some_draws,
    write_index,
)


@pytest.fixture
def make_index(tmp_path: Path) -> Callable[[list[bytes]], ImageIndex]:
    """A function that writes files and returns an index of them."""
    return partial(write_index, tmp_path)


def odd_files() -> dict[str, bytes]:
    """Unusual files, as ImageNet or a user's folder may hold them, by kind; all are named .JPEG."""
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
        "exif corrupt": encoded(rgb, quality=95, exif=rotated.tobytes()[:-8]),
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
def test_loaders_decode_odd_files_alike(make_index):
    files = odd_files()
    index, draws = make_index(list(files.values())), some_draws(range(len(files)), 280)
    images = {name: next(read(name, index, [draws])).images for name in LOADERS}
    assert images["dali"].shape == (len(files), CROP, CROP, 3)
    for row, (kind, data) in enumerate(files.items()):
        assert difference(images["dali"][row], images["torchvision"][row]) < 0.5, kind
        if kind == "16-bit png":  # Pillow's own conversion clips: the high byte is meant
            data = encoded(Image.fromarray(picture(300, 400)[..., 0]), "PNG")
        assert difference(images["torchvision"][row], literal(data, draws, row)) < 0.3, kind


def test_corrupt_metadata_causes_no_warning(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(odd_files()["exif corrupt"])
    program = "import sys; from data.decoding import *; decode_rgb(open(sys.argv[1], 'rb').read())"
    done = run_program("-c", program, str(tmp_path / "a.jpg"))
    assert done.stderr == ""


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
        "cut by two bytes": whole[:-2],
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
def test_a_bad_file_is_refused_with_its_path(name, kind, make_index):
    good = jpeg(300, 400)
    index = make_index([good, good, BAD[kind], good])
    batches = read(name, index, [some_draws([0, 1]), some_draws([1, 2, 3])])
    assert len(next(batches).labels) == 2
    with pytest.raises(UserError) as refused:
        next(batches)
    assert index.path(2) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_loaders_replace_bad_files_alike(make_index):
    good = [jpeg(300, 400, seed) for seed in range(3)]
    files = [good[0], *BAD.values(), good[1], good[2], b"no image"]
    index, last_bad = make_index(files), len(files) - 1
    first_good, count = len(files) - 3, len(BAD)
    drawn_indices = [list(range(len(files))), [2, last_bad], [0, first_good]]
    draws = [some_draws(indices, 256, [(0.2, 0.7)] * len(indices)) for indices in drawn_indices]
    instead = dict.fromkeys(range(1, count + 1), first_good) | {last_bad: 0}
    for name in LOADERS:
        events: list[str] = []
        batches = list(read(name, index, draws, on_error="skip", on_event=events.append))
        for batch, drawn, indices in zip(batches, draws, drawn_indices, strict=True):
            shown = [instead.get(i, i) for i in indices]
            assert batch.indices.tolist() == shown
            assert batch.replaced.tolist() == [i in instead for i in indices]
            assert batch.labels.tolist() == index.labels[shown].tolist()
            for row, i in enumerate(shown):
                assert difference(batch.images[row], literal(files[i], drawn, row)) < 0.3
        assert len(events) == len(instead)
        for bad, shown_instead in instead.items():
            (event,) = [event for event in events if f"image {index.path(bad)} " in event]
            assert event.endswith(f"replaced by {index.path(shown_instead)}")


@pytest.mark.parametrize("name", LOADERS)
def test_a_bad_file_may_be_in_every_batch(name, make_index):
    """Broken tables: DALI's pipeline fails on this file, batch after batch."""
    index = make_index([BAD["broken tables"], jpeg(300, 400)])
    draws = [some_draws([1, 0])] * 12
    batches = list(read(name, index, draws, on_error="skip", on_event=print))
    assert [batch.replaced.tolist() for batch in batches] == [[False, True]] * 12


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_set_of_bad_files_alone_is_refused(name, on_error, make_index):
    index = make_index([b"", b"text", BAD["broken tables"]])
    with pytest.raises(UserError, match=r"000\.JPEG"):
        next(read(name, index, [some_draws([0, 1])], on_error=on_error, on_event=print))


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_file_is_a_bad_file(name, make_index):
    index = make_index([jpeg(300, 400), jpeg(300, 400)])
    Path(index.path(1)).unlink()
    with pytest.raises(UserError, match=r"001\.JPEG.*No such file"):
        next(read(name, index, [some_draws([1])]))


def test_pillow_decodes_a_batch_on_which_dali_fails(make_index, monkeypatch):
    """DALI refuses a GIF, which it is made to take for an ordinary JPEG here."""
    import data.dali

    files = [jpeg(300, 400), encoded(Image.fromarray(picture(300, 400, 2)), "GIF"), jpeg(300, 400)]
    monkeypatch.setattr(data.dali, "plain_jpeg_size", lambda _: (300, 400))
    draws = [some_draws([0]), some_draws([2, 1, 0]), some_draws([2, 0])]
    events: list[str] = []
    batches = read("dali", make_index(files), draws, on_event=events.append)
    for batch, drawn in zip(batches, draws, strict=True):
        for row, i in enumerate(drawn.indices):
            assert difference(batch.images[row], literal(files[i], drawn, row)) < 0.3
    (event,) = events
    assert event.startswith("Pillow decoded a batch on which DALI failed (")
