"""prepare_imagenet.py extract: what is refused, and that nothing is written outside OUT."""

import fcntl
import io
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from common.errors import UserError
from data.prepare.write import write_splits
from data.sources.index import index_tar
from tests.preparing import prepare, refused, tree
from tests.tars import (
    DEVKIT,
    TEST,
    TRAIN,
    VAL,
    Official,
    meta_mat,
    nested,
    tar_of,
    write_devkit,
    write_official,
)

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def official(tmp_path: Path) -> Official:
    return write_official(tmp_path / "official", picture=lambda seed: b"%d" % seed * (100 + seed))


@pytest.mark.parametrize("name", [DEVKIT, VAL])
def test_what_is_missing(official: Official, tmp_path: Path, name: str) -> None:
    (official.root / name).unlink()
    splits = ["--splits", "val"]
    sentence = refused("extract", official.root, tmp_path / "out", *splits).stderr
    assert name in sentence
    assert "download it" in sentence
    assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_written(official: Official, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a file")
    sentence = refused("extract", official.root, tmp_path / "file" / "out").stderr
    assert f"error: cannot write {tmp_path}/file" in sentence
    assert "Not a directory" in sentence
    (tmp_path / "out").mkdir()
    handle = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    sentence = refused("extract", official.root, tmp_path / "out").stderr
    os.close(handle)
    assert "another process is writing into" in sentence
    assert tree(tmp_path / "out") == {}


def test_a_disk_that_is_too_small(official: Official, tmp_path: Path) -> None:
    size = shutil.disk_usage(tmp_path).free + 2**30
    with open(official.root / TEST, "wb") as file:  # a hole, of which the disk holds nothing
        member = tarfile.TarInfo("ILSVRC2012_test_00000001.JPEG")
        member.size = size
        header = member.tobuf()
        file.write(header)
        file.truncate(len(header) + -(-size // 512) * 512 + 1024)
    sentence = refused("extract", official.root, tmp_path / "out").stderr
    assert re.search(r"out needs room for [\d,.]+ GB more, [\d,.]+ GB are free", sentence)
    assert tree(tmp_path / "out") == {}


def evil_tar(official: Official, name: str, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A class tar with one more member."""
    content = io.BytesIO(tar_of(official.train[official.classes[0]]))
    with tarfile.open(fileobj=content, mode="a") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        member.size = 4 if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(b"evil"))
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../../evil.JPEG", tarfile.REGTYPE),
        ("{tmp}/evil.JPEG", tarfile.REGTYPE),
        ("evil.JPEG", tarfile.SYMTYPE),
        ("evil.JPEG", tarfile.LNKTYPE),
        ("..", tarfile.REGTYPE),
    ],
)
def test_evil_members(official: Official, tmp_path: Path, name: str, kind: bytes) -> None:
    first, out = official.classes[0], tmp_path / "a" / "b" / "out"
    inner = {f"{wnid}.tar": tar_of(files) for wnid, files in official.train.items()}
    inner[f"{first}.tar"] = evil_tar(official, name.format(tmp=tmp_path), kind)
    (official.root / TRAIN).write_bytes(tar_of(inner))
    before = tree(tmp_path)
    if kind == tarfile.REGTYPE:
        prepare("extract", official.root, out, "--splits", "train")
        more = {"evil.JPEG": b"evil"} if "evil" in name else {}
        assert tree(out / "train" / first) == official.train[first] | more
    else:
        sentence = refused("extract", official.root, out, "--splits", "train").stderr
        assert "holds 'evil.JPEG' as a link" in sentence
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", ".hidden"])
def test_evil_classes(official: Official, tmp_path: Path, name: str) -> None:
    """Of a training tar and a devkit that agree."""
    wnids = [name, *official.wnids[1:]]
    truth = [1] * len(official.val)
    write_devkit(official.root / DEVKIT, meta_mat(wnids), truth)
    official.train[name] = official.train.pop(official.wnids[0])
    (official.root / TRAIN).write_bytes(nested(official.train))
    before = tree(tmp_path)
    for split in ("train", "val"):
        with pytest.raises(UserError, match=r"cannot name a folder|lacks|unlike"):
            write_splits(tmp_path / "a" / "out", {split: index_tar(official.root, split)}, 1)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert tree(tmp_path) == before
