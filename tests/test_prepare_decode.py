"""prepare_imagenet.py check --decode: odd and bad images are listed and compared with the known."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.decoding import BadImage
from data.prepare.odd_images import odd_kinds
from tests.conftest import ROOT
from tests.pictures import jpeg
from tests.preparing import PROGRAM, checked, release_of
from tests.tars import TRAIN, VAL, Official, nested, tar_of, unpack, write_official
from tests.test_data_files import bad_files, odd_files

KINDS = {
    "grey": ["greyscale"],
    "grey png": ["PNG named JPEG", "greyscale"],
    "grey alpha png": ["PNG named JPEG", "greyscale", "transparent"],
    "bilevel png": ["PNG named JPEG", "greyscale"],
    "cmyk": ["CMYK"],
    "cmyk that is not inverted": ["CMYK"],
    "exif rotated": ["EXIF orientation (ignored)"],
    "exif corrupt": ["corrupt EXIF"],
    "png": ["PNG named JPEG"],
    "palette png": ["PNG named JPEG", "palette"],
    "palette png, transparent": ["PNG named JPEG", "palette", "transparent"],
    "alpha png": ["PNG named JPEG", "transparent"],
    "16-bit png": ["16 bits a channel", "PNG named JPEG", "greyscale"],
    "bmp": ["BMP named JPEG"],
    "webp": ["WEBP named JPEG"],
    "alpha webp": ["WEBP named JPEG", "transparent"],
}


ODD, BAD = odd_files(), bad_files()


pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("kind", ODD)
def test_kinds(kind: str) -> None:
    assert odd_kinds(ODD[kind], "n01440764_1.JPEG") == KINDS.get(kind, [])


def test_a_correct_name_is_not_odd() -> None:
    assert odd_kinds(ODD["png"], "a.PNG") == []
    assert odd_kinds(ODD["exif rotated"], "a.jpg") == ["EXIF orientation (ignored)"]


@pytest.mark.parametrize("kind", BAD)
def test_unreadable_images(kind: str) -> None:
    with pytest.raises(BadImage):
        odd_kinds(BAD[kind], "n01440764_1.JPEG")


def test_odd_images_of_a_set(tmp_path: Path) -> None:
    official = write_official(tmp_path / "official")
    wnid = official.classes[7]
    odd = {
        f"{wnid}_1.JPEG": ODD["cmyk"],
        f"{wnid}_2.JPEG": ODD["png"],
        f"{wnid}_3.JPEG": ODD["exif corrupt"],
        f"{wnid}_4.JPEG": ODD["grey"],
        f"{wnid}_5.JPEG": ODD["cmyk that is not inverted"],
    }
    official.train[wnid] = odd
    (official.root / TRAIN).write_bytes(nested(official.train))
    known = {
        "CMYK": [f"{wnid}_1", f"{wnid}_5"],
        "PNG named JPEG": [f"{wnid}_2"],
        "corrupt EXIF": [f"{wnid}_3"],
    }
    release = release_of(official, odd_images=known)
    done = checked(official.root, release, md5=False, decode=2)
    assert done.faults == []
    path = f"{official.root}/{TRAIN}:{wnid}/{wnid}_2.JPEG"
    assert f"{TRAIN}: PNG named JPEG: {path}\n" in done.told
    amounts = "CMYK 2, PNG named JPEG 1, corrupt EXIF 1, greyscale 1"
    count = sum(map(len, official.train.values()))
    assert f"{TRAIN}: {count} images decoded; odd ones: {amounts}" in done.told
    assert f"{wnid}_1, {wnid}_5: as in the set as distributed" in done.told
    assert f"{VAL}: 40 images decoded; odd ones: none" in done.told

    official.train[wnid] |= {
        f"{wnid}_1.JPEG": ODD["exif corrupt"],
        f"{wnid}_4.JPEG": ODD["cmyk"],
    }
    name, data = list(official.val.items())[5]
    official.val[name] = data[: len(data) // 2]
    (official.root / TRAIN).write_bytes(nested(official.train))
    (official.root / VAL).write_bytes(tar_of(official.val))
    folder = unpack(official, tmp_path / "folder")
    for root, train, val in ((official.root, TRAIN, VAL), (folder, "train", "val")):
        faults = checked(root, release, md5=False, decode=2).faults
        assert len(faults) == 2
        assert faults[0].startswith(f"{train} is not as distributed: of the 2 known as CMYK")
        assert faults[0].endswith(f"differ: {wnid}_1, {wnid}_4")  # more bad EXIF is no fault
        path = f"{root}/{val}{':' if val == VAL else '/'}{official.val_wnids[name]}/{name}"
        assert faults[1].startswith(f"{val} has the unreadable image {path} (")


def descendants(pid: int) -> list[int]:
    """The descendants that multiprocessing started; others may end meanwhile."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    except OSError:
        return []
    workers = [child for child, words in commands.items() if b"multiprocessing" in words]
    return workers + [below for child in workers for below in descendants(child)]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Official:
    data, root = jpeg(900, 1200), tmp_path_factory.mktemp("large") / "official"
    return write_official(root, num_classes=60, picture=lambda seed: data)


@pytest.mark.parametrize("victim", ["the program", "a worker"])
def test_a_killed_process(large: Official, victim: str) -> None:
    """No worker is left behind, and nothing hangs."""
    arguments = [PROGRAM, "check", str(large.root), "--decode", "--no-md5", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    workers: list[int] = []
    start = time.monotonic()
    while len(workers) < 4:  # the fork server, the resource tracker, two workers
        assert process.poll() is None
        assert time.monotonic() - start < 60
        workers = descendants(process.pid)
    os.kill(process.pid if victim == "the program" else workers[-1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    if victim == "a worker":
        assert process.returncode == 1
        assert stderr.startswith(b"error: a worker process died")
        assert stderr.count(b"\n") == 1
    while any(map(running, workers)):
        assert time.monotonic() - start < 60
        time.sleep(0.1)
