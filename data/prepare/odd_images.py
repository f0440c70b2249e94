"""Images that are not what their name says, or not plain RGB: which there are, and of what kind.

Pillow judges, as in data/decoding.py: both loaders show these images as Pillow does.
"""

import io
import warnings
from pathlib import PurePath

from PIL import ExifTags, Image

from common.errors import reason
from data.decoding import BadImage, decode_rgb
from data.prepare.facts import BAD_EXIF, CMYK
from data.sources.index import ImageIndex

GREY, TURNED = "greyscale", "EXIF orientation (ignored)"
PLENTY = (GREY, TURNED)  # kinds too common to be listed image by image
UNREADABLE = "unreadable"

_NAMED = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"}
_KINDS = {
    "CMYK": CMYK,
    **dict.fromkeys(("1", "L", "LA", "La", "I", "I;16", "I;16B"), GREY),
    **dict.fromkeys(("P", "PA"), "palette"),
}


def oddities(data: bytes, name: str) -> list[str]:
    """In what ways an encoded image of this name is odd. Decodes all of it; raises BadImage."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        decode_rgb(data)
        with Image.open(io.BytesIO(data)) as image:
            found = [_KINDS.get(image.mode, "")]
            kind = image.format or ""
            named = _NAMED.get(PurePath(name).suffix.lower(), kind)
            found += [f"{kind} named {named}"] if kind != named else []
            if kind == "PNG" and data[24] == 16:  # bits, in the header; Pillow's mode hides them
                found.append("16 bits a channel")
            if image.mode in ("RGBA", "LA") or "transparency" in image.info:
                found.append("transparent")
            found += _exif_oddities(image)
    if any("EXIF" in str(warning.message) for warning in heard):
        found.append(BAD_EXIF)
    return sorted({kind for kind in found if kind})


def _exif_oddities(image: Image.Image) -> list[str]:
    try:
        exif = image.getexif()
        exif.get_ifd(ExifTags.IFD.Exif)
    except Exception:  # Pillow: SyntaxError, struct.error, OSError, ...
        return [BAD_EXIF]
    return [TURNED] if exif.get(ExifTags.Base.Orientation, 1) != 1 else []


def odd_images(index: ImageIndex, part: range) -> list[tuple[int, str, str]]:
    """(image, kind, reason) for each oddity of these images of the index; for data.prepare.pool.

    What cannot be read is of the kind UNREADABLE, which alone has a reason.
    """
    found = []
    for i in part:
        try:
            kinds = oddities(index.read(i), index.path(i))
        except (BadImage, OSError) as error:
            why = reason(error)
            found.append((i, UNREADABLE, why))
            continue
        found += [(i, kind, "") for kind in kinds]
    return found
