"""Finds images that are not what their name says, or not plain RGB, and says of what kind they are.

Pillow judges, as in data/decoding.py: both loaders show these images as Pillow does.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import PurePath

from PIL import ExifTags, Image

from common.errors import reason
from data.decoding import BadImage, decode_rgb
from data.prepare.release import BAD_EXIF, CMYK
from data.sources.index import ImageIndex

GREY, TURNED = "greyscale", "EXIF orientation (ignored)"
COMMON = (GREY, TURNED)  # too many to list each image

_FORMAT_OF = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
_KIND_OF_MODE = {
    "CMYK": CMYK,
    **dict.fromkeys(("1", "L", "LA", "La", "I", "I;16", "I;16B"), GREY),
    **dict.fromkeys(("P", "PA"), "palette"),
}


@dataclass(frozen=True)
class OddImage:
    """An image that is odd in some way, or cannot be read."""

    path: str
    kinds: list[str]
    unreadable: str = ""  # why it cannot be read


def odd_images(index: ImageIndex, rows: range) -> list[OddImage]:
    """The odd images in these rows of the index; for data.prepare.pool."""
    images = []
    for i in rows:
        path = index.path(i)
        try:
            if kinds := odd_kinds(index.read(i), path):
                images.append(OddImage(path, kinds))
        except (BadImage, OSError) as error:
            images.append(OddImage(path, [], unreadable=reason(error)))
    return images


def odd_kinds(data: bytes, name: str) -> list[str]:
    """In what ways an encoded image of this name is odd. Decodes it whole; raises BadImage."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_rgb(data)
        with Image.open(io.BytesIO(data)) as image:
            kinds = {_KIND_OF_MODE.get(image.mode, ""), _exif_kind(image)}
            actual = image.format or ""
            named = _FORMAT_OF.get(PurePath(name).suffix.lower(), actual)
            if actual != named:
                kinds.add(f"{actual} named {named}")
            if actual == "PNG" and data[24] == 16:  # bits, in the header; Pillow's mode hides them
                kinds.add("16 bits a channel")
            if image.mode in ("RGBA", "LA") or "transparency" in image.info:
                kinds.add("transparent")
    if any("EXIF" in str(warning.message) for warning in caught):
        kinds.add(BAD_EXIF)
    return sorted(kinds - {""})


def _exif_kind(image: Image.Image) -> str:
    try:
        exif = image.getexif()
        exif.get_ifd(ExifTags.IFD.Exif)
    except Exception:  # Pillow: SyntaxError, struct.error, OSError, ...
        return BAD_EXIF
    return TURNED if exif.get(ExifTags.Base.Orientation, 1) != 1 else ""
