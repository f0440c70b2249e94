"""What a tar may hold, and that every fault in it is noticed."""

import io
import os
import re
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from data.sources.tars import TarListing, list_images
from tests.tars import tar_of

Lister = Callable[[bytes], TarListing]


@pytest.fixture
def list_tar(tmp_path: Path) -> Lister:
    """A function that lists the images of a tar, given its bytes."""

    def list_content(content: bytes) -> TarListing:
        (tmp_path / "a.tar").write_bytes(content)
        with open(tmp_path / "a.tar", "rb") as file:
            return list_images(file)

    return list_content


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_folders_and_other_files(list_tar: Lister, kind: int) -> None:
    long = "x" * 200 + ".JPEG"
    files = {
        **{"deep/" * 40 + "b.jpg": b"1", long: b"22", "caf\udce9.png": b"4", "A.PNG": b"333"},
        **{".hidden.jpg": b"", "deep/._a.jpg": b"", "notes.txt": b"text"},
    }
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=kind, pax_headers={"comment": "ü"}) as tar:
        for name in ("deep", "looks.jpg"):
            folder = tarfile.TarInfo(name)
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    listing = list_tar(whole.getvalue())
    assert listing.fault == ""
    assert listing.names.tolist() == [b"A.PNG", b"b.jpg", b"caf\xe9.png", long.encode()]
    places = zip(listing.offsets.tolist(), listing.sizes.tolist(), strict=True)
    data = [whole.getvalue()[offset : offset + size] for offset, size in places]
    assert data == [b"333", b"1", b"4", b"22"]


@pytest.mark.parametrize("link", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_an_image_that_is_a_link_is_a_fault(list_tar: Lister, link: bytes) -> None:
    whole = io.BytesIO(tar_of({"a.jpg": b"1"}))
    with tarfile.open(fileobj=whole, mode="a") as tar:
        member = tarfile.TarInfo("b.jpg")
        member.type, member.linkname = link, "a.jpg"
        tar.addfile(member)
    listing = list_tar(whole.getvalue())
    assert listing.names.tolist() == [b"a.jpg"]
    assert "holds 'b.jpg' as a link" in listing.fault


def test_every_cut_and_every_bad_header_is_noticed(list_tar: Lister) -> None:
    """The independent truth is tarfile's list of where the members lie."""
    files = {f"{k}.jpg": b"x" * (100 + 300 * k) for k in range(8)} | {"y" * 150 + ".jpg": b"z" * 99}
    content = tar_of(files)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = tar.getmembers()
    ends = [member.offset_data + -(-member.size // 512) * 512 for member in members]
    for cut in [*range(0, ends[-1] + 512, 101), *ends, ends[-1] + 511]:
        listing = list_tar(content[:cut])
        assert f"is cut short at byte {cut}" in listing.fault, cut
        assert len(listing.names) == sum(end <= cut for end in ends)
    assert list_tar(content[: ends[-1] + 512]).fault == ""  # one block of zeros ends a tar
    for k, member in enumerate(members):
        for byte in (0, 130, 148):  # name, size, checksum
            spoiled = bytearray(content)
            spoiled[member.offset + byte] ^= 0x15
            listing = list_tar(bytes(spoiled))
            assert re.search(rf"is damaged.* at byte {member.offset}\b", listing.fault)
            assert len(listing.names) == k


def test_a_hole_is_not_the_end(list_tar: Lister) -> None:
    """As an interrupted download may leave it: a header of zeros in the middle."""
    content = bytearray(tar_of({f"{k}.jpg": b"x" * 9000 for k in range(8)}))
    at = 3 * (512 + 9216)
    content[at : at + 512] = bytes(512)
    listing = list_tar(bytes(content))
    assert f"damaged at byte {at}, where a header should be" in listing.fault
    assert len(listing.names) == 3


def test_images_are_not_read_and_memory_stays_flat(tmp_path: Path) -> None:
    """Images of a gigabyte each, of which the disk stores nothing."""

    def peak(count: int) -> float:
        with open(tmp_path / "large.tar", "wb") as file:
            for k in range(count):
                member = tarfile.TarInfo(f"n01440764_{k}.JPEG")
                member.size = 2**30
                file.write(member.tobuf())
                file.seek(member.size, os.SEEK_CUR)
            file.write(bytes(1024))
        with open(tmp_path / "large.tar", "rb", buffering=1024) as file:
            tracemalloc.start()
            before = bytes_read()
            listing = list_images(file)
            assert bytes_read() - before < 1100 * (count + 2)
            memory = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert (listing.fault, len(listing.names)) == ("", count)
        return memory

    few, many = peak(200), peak(4200)
    assert (many - few) / 4000 < 220  # bytes an image, of which the result takes 38


def bytes_read() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])
