"""The embedded data set: ten classes of generated textures, in files like ImageNet's.

The images (data/patterns.py) vary in size, aspect ratio and JPEG quality. Some are greyscale, CMYK
or progressive, some have an EXIF orientation (which is ignored, as in all published ImageNet
results), and one is a PNG named as a JPEG. With this set everything can be run and tested
without ImageNet; errors on it say nothing about ImageNet.
"""

import io
import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from data.patterns import PATTERNS, draw_image

VERSION = 1  # raise it when an image changes, so that older sets are generated again
IMAGES = {"train": 200, "val": 40}  # of each class
MARKER = ".generated-by-rectifiers"
CLASSES = {f"g{label:02d}_{name}": name for label, name in enumerate(PATTERNS)}

_SEED = 1502_01852
_README = """This data set is generated. No image in it is a photograph.

Ten classes of textures, {train} training and {val} validation images each, drawn by
data/synthetic.py of the "rectifiers" project in order to try and test it without ImageNet.
The folder is made anew when it is deleted, and replaced when the generator changes.
"""


def make_synthetic(root: Path | str) -> None:
    """Generate the embedded set at `root` unless it is there already, complete and current.

    The images are the same each time. The folder appears atomically; if several processes generate
    it at once, the first to finish wins. Raises UserError if `root` holds something else or cannot
    be written.
    """
    root = Path(root).expanduser().absolute()
    if _is_complete(root):
        return
    if root.exists() and not (root / MARKER).is_file() and (root.is_file() or any(root.iterdir())):
        raise UserError(
            f"{root} exists and is not the generated set: type data.root=/another/folder to have "
            "it generated there, or data=folder to train on what is there"
        )
    part = root.with_name(f".{root.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        _generate(part)
        _move_in_place(part, root)
    except OSError as error:
        raise UserError(f"cannot generate the data set at {root}: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def encode_image(split: str, label: int, number: int) -> bytes:
    """The file of an image of the set: a pure function of its split, label and number."""
    name = list(PATTERNS)[label]
    key = (_SEED << 64) | (list(IMAGES).index(split) << 40) | (label << 20) | number
    rng = np.random.Generator(np.random.Philox(key=key))
    shorter = int(128 * 2.5 ** rng.random())  # up to 320
    widest = 3.0 if number % 20 == 11 else 1.6
    longer = int(shorter * np.exp(rng.uniform(0, np.log(widest))))
    portrait = rng.integers(4) == 0  # most photographs are landscape
    height, width = (longer, shorter) if portrait else (shorter, longer)
    image = draw_image(name, rng, height, width)
    file = io.BytesIO()
    if (split, label, number) == ("train", 0, 0):
        image.save(file, "PNG")  # like n02105855_2933.JPEG of ImageNet
        return file.getvalue()
    if number % 12 == 5:
        image = image.convert("L")
    elif number % 25 == 7:
        image = image.convert("CMYK")
    exif = Image.Exif()
    if number % 10 == 3:
        exif[0x0112] = int(rng.integers(2, 9))  # orientation
    image.save(
        file,
        "JPEG",
        quality=int(rng.integers(60, 96)),
        progressive=number % 5 == 1,
        subsampling=int(rng.integers(3)),
        exif=exif,
    )
    return file.getvalue()


def _expected() -> str:
    return f"version {VERSION}, images {IMAGES}\n"


def _is_complete(root: Path) -> bool:
    """Whether `root` holds the set of this version with all its images."""
    try:
        if (root / MARKER).read_text() != _expected():
            return False
        return all(
            len(os.listdir(root / split / name)) == count
            for split, count in IMAGES.items()
            for name in CLASSES
        )
    except OSError:
        return False


def _generate(folder: Path) -> None:
    images = [
        (split, label, number)
        for split, count in IMAGES.items()
        for label in range(len(CLASSES))
        for number in range(count)
    ]

    def write(split: str, label: int, number: int) -> None:
        name = list(CLASSES)[label]
        path = folder / split / name / f"{name}_{number:04d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(split, label, number))

    # Threads, not processes: numpy and Pillow take most of the time and release the interpreter's
    # lock, and the caller's main module need not be safe to import again.
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        written = pool.map(write, *zip(*images, strict=True))
        for _ in tqdm(written, "generating the embedded set", len(images), disable=None):
            pass
    (folder / "README.txt").write_text(_README.format(**IMAGES))
    (folder / MARKER).write_text(_expected())


def _move_in_place(part: Path, root: Path) -> None:
    """Rename the finished set to `root`, replacing an older or damaged one."""
    if _is_complete(root):
        return
    old = part.with_name(part.name + "-old")
    if (root / MARKER).is_file():
        with suppress(FileNotFoundError):  # another process has just moved it
            os.rename(root, old)
    try:
        os.rename(part, root)
    except OSError:
        if not _is_complete(root):  # else another process was first, with the same images
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
