"""Uncompressed tar files, read in place: where the bytes of their images lie, and those bytes.

Headers are read by the standard library's tarfile, which seeks from one to the next: image data is
skipped, and no list of members is built up. tarfile takes a bad header for the end of the archive,
so the end is checked here.
"""

import os
import tarfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from common.errors import UserError, refusing
from data.sources.cache import Stamp, stamp
from data.sources.folders import is_image

# One read of this length holds a header and the byte before it, which tarfile looks at.
_BUFFER = 1024
# A block of zeros ends a tar, which is then padded to a whole record. If more follows, the zeros
# are a hole, as an interrupted download may leave it, with images behind it.
_PADDING = 2 * tarfile.RECORDSIZE


class BrokenTar(Exception):
    """The tar is damaged; the message says where, as in "is cut short at byte 512"."""


@dataclass(frozen=True)
class TarListing:
    """N images of a tar: their file names, without folders, and where their bytes are."""

    names: npt.NDArray[np.bytes_]  # [N]
    offsets: npt.NDArray[np.int64]  # [N] in the file
    sizes: npt.NDArray[np.int64]  # [N] bytes
    fault: str = ""  # what is wrong with the tar, as in "is cut short at byte 512"

    def __len__(self) -> int:
        return len(self.names)

    def only(self, rows: npt.NDArray[np.int64]) -> "TarListing":
        """These images, in this order."""
        return TarListing(self.names[rows], self.offsets[rows], self.sizes[rows], self.fault)


def join(listings: Sequence[TarListing]) -> TarListing:
    """All images of these listings, one listing after the other."""
    empty = np.zeros(0, np.int64)
    return TarListing(
        np.concatenate([np.zeros(0, "S1"), *(listing.names for listing in listings)]),
        np.concatenate([empty, *(listing.offsets for listing in listings)]),
        np.concatenate([empty, *(listing.sizes for listing in listings)]),
    )


def open_tar(path: Path) -> BinaryIO:
    """The file, for `read_headers`. Raises UserError if it cannot be opened."""
    with readable(path):
        return open(path, "rb", buffering=_BUFFER)


def readable(path: Path) -> AbstractContextManager[None]:
    """Turns an OSError raised inside into a UserError that names the file."""
    return refusing(OSError, what=f"cannot read {path}", also="it must be a file that you may read")


def read_headers(file: BinaryIO, stop: int | None = None) -> Iterator[tarfile.TarInfo]:
    """All headers of the tar that begins at the position of `file`; offset_data is in `file`.

    stop: where the tar must end, if it is a member of another tar. The file may be used for other
    things between two headers. Raises BrokenTar after the last intact member.
    """
    length = os.fstat(file.fileno()).st_size
    end, at = length if stop is None else stop, file.tell()
    try:
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            while at < end and (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if member.size < 0 or tar.offset <= at:
                    raise BrokenTar(f"is damaged at byte {at}")
                if max(member.offset_data + member.size, tar.offset) > end:
                    raise BrokenTar(f"is cut short at byte {end}, inside {member.name!r}")
                at = tar.offset
                yield member
    except tarfile.TarError as error:
        if file.tell() >= length:
            raise BrokenTar(f"is cut short at byte {length}") from error
        raise BrokenTar(f"is damaged, or no uncompressed tar, at byte {at} ({error})") from error
    if at == stop:
        return  # written without the mark that ends a tar; its size in the outer tar is enough
    file.seek(at)
    rest = file.read(min(end - at, _PADDING + 1))
    if len(rest) < tarfile.BLOCKSIZE:
        raise BrokenTar(f"is cut short at byte {length}")
    if any(rest[: tarfile.BLOCKSIZE]) or len(rest) > _PADDING:
        raise BrokenTar(f"is damaged at byte {at}, where a header should be")


def list_images(file: BinaryIO, stop: int | None = None) -> TarListing:
    """The images, sorted by name, of the tar that begins at the position of `file`.

    Hidden files and other files are left out, folders inside the tar do not matter. The list ends
    at the first fault. Of two images of the same name the last is listed, as tar -x would keep it.
    """
    names, offsets, sizes, fault = list[bytes](), array("q"), array("q"), ""
    try:
        for member in read_headers(file, stop):
            name = os.fsencode(member.name.rpartition("/")[2])
            if member.isdir() or not is_image(name):
                continue
            if not member.isreg() or member.issparse():
                fault = f"holds {member.name!r} as a link or in another form that has no bytes"
                break
            names.append(name)
            offsets.append(member.offset_data)
            sizes.append(member.size)
    except BrokenTar as error:
        fault = str(error)
    unsorted = np.array(names, np.bytes_)
    order = np.argsort(unsorted, kind="stable")
    ordered = unsorted[order]
    is_last = np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)]
    if not is_last.all() and not fault:
        fault = f"holds {os.fsdecode(ordered[~is_last][0])!r} twice"
    order = order[is_last]
    return TarListing(unsorted, np.array(offsets), np.array(sizes), fault).only(order)


@dataclass(frozen=True)
class TarReader:
    """Reads N images of a tar. Picklable; may be used by any thread, process or fork.

    Each process opens the file once, when it reads its first image, and reads only at given
    positions: no file position is shared.
    """

    path: str
    stamp: tuple[int, int]  # size and modification time, ns, when the tar was indexed
    offsets: npt.NDArray[np.int64] = field(repr=False)  # [N]
    sizes: npt.NDArray[np.int64] = field(repr=False)  # [N]

    def read(self, i: int) -> bytes:
        """The bytes of image `i`.

        Raises OSError if they cannot be read, UserError if the tar has changed.
        """
        size, offset = int(self.sizes[i]), int(self.offsets[i])
        handle = self.__dict__.get("_handle")
        if handle is None:
            handle = self._open()
        data = os.pread(handle, size, offset)
        while len(data) < size:  # a signal or a network file system may cut a read short
            more = os.pread(handle, size - len(data), offset + len(data))
            if not more:  # the tar's fault, not this image's: no other image may replace it
                raise UserError(
                    f"{self.path} has changed since it was indexed: it ends at byte "
                    f"{offset + len(data)}, inside an image"
                )
            data += more
        return data

    def only(self, rows: npt.NDArray[np.int64]) -> "TarReader":
        """A reader of these images, in this order."""
        return TarReader(self.path, self.stamp, self.offsets[rows], self.sizes[rows])

    def _open(self) -> int:
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(handle)
        if (status.st_size, status.st_mtime_ns) != self.stamp:
            os.close(handle)
            raise UserError(
                f"{self.path} has changed since it was indexed (its size or modification time): "
                "type the same command again to index it anew"
            )
        # No lock, which a fork could inherit while it is held: if two threads open the file, one
        # handle is kept.
        kept: int = self.__dict__.setdefault("_handle", handle)
        if kept == handle:
            weakref.finalize(self, os.close, handle)
        else:
            os.close(handle)
        return kept

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, which belongs to this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_handle"}


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file. Raises UserError if it is not accessible."""
    with readable(path):
        return stamp(os.stat(path))
