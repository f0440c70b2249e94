"""prepare_imagenet.py extract: the bytes of the tars and nothing else, after any interruption."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data.prepare.write import write_splits
from data.sources.folders import UNFINISHED
from data.sources.index import index_tar, scan_folder
from tests.conftest import ROOT
from tests.preparing import PROGRAM, checked, prepare, refused, release_of, tree
from tests.tars import TRAIN, VAL, Official, age, nested, tar_of, unpack, write_official

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return write_official(tmp_path / "official", picture=lambda seed: b"%d" % seed * (100 + seed))


@pytest.fixture
def truth(official: Official, tmp_path: Path) -> dict[str, bytes]:
    """The folder layout by the tar program, and the test images."""
    folder = unpack(official, tmp_path / "truth")
    return tree(folder) | {f"test/{name}": data for name, data in official.test.items()}


def test_extract(official: Official, truth: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = prepare("extract", official.root, out)
    assert tree(out) == truth
    assert (
        f"{out}/train: 79 images written, into 20 folders; 0 more were already there" in done.stdout
    )
    assert scan_folder(out, "val").fingerprint() == scan_folder(official.root, "val").fingerprint()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = prepare("extract", official.root, out)
    assert (
        f"{out}/train: 0 images written, into 0 folders; 20 more were already there" in again.stdout
    )
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert checked(out, release_of(official)).faults == []


def test_one_split_beside_the_tars(official: Official, truth: dict[str, bytes]) -> None:
    before = tree(official.root)
    prepare("extract", official.root, official.root, "--splits", "val")
    val = {name: data for name, data in truth.items() if name.startswith("val/")}
    assert tree(official.root) == before | val
    prepare("extract", official.root, official.root)
    assert tree(official.root) == before | truth


def test_killed_at_any_moment(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(400_000)
    official = write_official(tmp_path / "official", 20, lambda seed: content[seed:])
    out, num_unfinished = tmp_path / "out", 0
    arguments = [PROGRAM, "extract", str(official.root), str(out), "--workers", "2"]
    for finished in (1, 6, 13, 18):
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT)
        while process.poll() is None and folders(out) < finished:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        for wnid, files in official.train.items():  # a class is complete, or not there
            if (out / "train" / wnid).exists():
                assert tree(out / "train" / wnid) == files
        num_unfinished += len(list(out.rglob(".*.part")))
        for split in ("train", "val"):  # nobody takes it for a data set
            with pytest.raises(UserError, match=r"is not whole, .* was interrupted"):
                scan_folder(out, split)
    assert num_unfinished  # a class was being written at some kill
    prepare(*arguments[1:])
    truth = tree(unpack(official, tmp_path / "truth"))
    assert tree(out) == truth | {f"test/{name}": data for name, data in official.test.items()}
    assert len(scan_folder(out, "val")) == len(official.val)


def folders(out: Path) -> int:
    train = out / "train"
    return len([e for e in os.listdir(train) if e[0] != "."]) if train.exists() else 0


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C ends it at once, with one sentence."""
    content = np.random.default_rng(0).bytes(1_000_000)
    official = write_official(tmp_path / "official", 60, lambda seed: content[seed:])
    out = tmp_path / "out"
    arguments = [PROGRAM, "extract", str(official.root), str(out), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and folders(out) < 1:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "interrupted: the same command continues where it can\n"
    assert folders(out) < 60


def test_nothing_is_overwritten(
    official: Official, truth: dict[str, bytes], tmp_path: Path
) -> None:
    out, (first, second, third) = tmp_path / "out", official.classes[:3]
    mine = {
        f"train/{first}/mine.JPEG": b"mine",
        f"train/{second}/{min(official.train[second])}": b"shorter",
        f"train/{third}": b"a file",
        "train/n00000000/other.JPEG": b"other",
        "val/notes.txt": b"notes",
    }
    for name, data in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    done = refused("extract", official.root, out)
    assert f"{out}/train/{first} (and 4 more) is not what would be written there" in done.stderr
    rest = {
        name: data
        for name, data in truth.items()
        if not re.match(f"train/({first}|{second}|{third})/", name)
    }
    assert tree(out) == rest | mine
    for name in mine:
        path = (out / name).parent if name.count("/") == 2 else out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    prepare("extract", official.root, out)
    assert tree(out) == truth


def test_a_tar_that_changes_meanwhile(official: Official, tmp_path: Path) -> None:
    out, first = tmp_path / "out", official.classes[0]
    index = index_tar(official.root, "train")
    official.train[first] = {"another.JPEG": b"another"}
    (official.root / TRAIN).write_bytes(nested(official.train))
    with pytest.raises(UserError, match="has changed since it was indexed"):
        write_splits(out, {"train": index}, num_workers=1)
    assert tree(out) == {f"train/{UNFINISHED}": b""}
    prepare("extract", official.root, out)  # the cached scan is not used
    assert tree(out / "train" / first) == {"another.JPEG": b"another"}
    official.train[first] = {"third.JPEG": b"third"}
    (official.root / TRAIN).write_bytes(nested(official.train))
    age(official.root, seconds=20)
    assert f"{out}/train/{first} is not what" in refused("extract", official.root, out).stderr
    assert tree(out / "train" / first) == {"another.JPEG": b"another"}


def test_a_damaged_tar(official: Official, tmp_path: Path) -> None:
    with tarfile.open(official.root / TRAIN) as tar:
        members = tar.getmembers()
    os.truncate(official.root / TRAIN, at := members[12].offset_data + 700)
    sentence = refused("extract", official.root, tmp_path / "out").stderr
    assert f"is cut short at byte {at}, inside '{members[12].name}': 12 of its 20" in sentence
    assert not (tmp_path / "out").exists()


def test_duplicate_names_in_damaged_tars(official: Official, tmp_path: Path) -> None:
    wnid, name = official.classes[2], "ILSVRC2012_val_00000003.JPEG"
    for tar, member, data in (
        (TRAIN, f"{wnid}.tar", tar_of({"a.JPEG": b"again"})),
        (VAL, f"folder/{name}", b"again"),
    ):
        with tarfile.open(official.root / tar, "a") as opened:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    done = refused("check", official.root, "--no-md5").stdout
    assert f"{TRAIN} holds {wnid}.tar twice" in done
    assert f"{VAL} holds '{name}' twice" in done
