"""Uncompressed tar files read in place: where the bytes of their images lie, and those bytes.

Headers are read by the standard library's tarfile, which seeks from one to the next; the data of
the members is never read, and no list of members is built up. tarfile takes a bad header for the
end of the archive, so that the end is checked here.
"""

import os
import tarfile
import weakref
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from common.errors import UserError, reason
from data.sources.folders import is_image

# One read of this length holds a header and the byte before it, which tarfile looks at.
_BUFFER = 1024
# A block of zeros ends a tar, which is then filled up to a whole record. If more follows, it is a
# hole, as an interrupted download may leave it, with images behind it.
_PADDING = 2 * tarfile.RECORDSIZE


class BrokenTar(Exception):
    """The tar is not whole; the message says where, as in "is cut short at byte 512"."""


@dataclass(frozen=True)
class Images:
    """The images of one tar in order of name, without folders, and where their bytes are."""

    names: npt.NDArray[np.bytes_]  # [N]
    offsets: npt.NDArray[np.int64]  # [N] in the file
    sizes: npt.NDArray[np.int64]  # [N]
    fault: str = ""  # what ended or spoils the list, as in "is cut short at byte 512"


def open_tar(path: Path) -> BinaryIO:
    """The file, to be given to `members`. Raises UserError if it cannot be opened."""
    with readable(path):
        return open(path, "rb", buffering=_BUFFER)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an OSError raised inside into a UserError that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({reason(error)}): it must be a file that you may read"
        ) from error


def members(file: BinaryIO, stop: int | None = None) -> Iterator[tarfile.TarInfo]:
    """All headers of the tar that begins where `file` stands; offset_data is a place in `file`.

    stop: where the tar must end, if it is a member of another. In between, the file may be used
    for other things. Raises BrokenTar, after all members that are whole.
    """
    length = os.fstat(file.fileno()).st_size
    end, at = length if stop is None else stop, file.tell()
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
    try:
        with tarfile.open(fileobj=file, mode="r:", **options) as tar:
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
        return  # it was written without the mark that ends a tar, which its size makes up for
    file.seek(at)
    rest = file.read(min(end - at, _PADDING + 1))
    if len(rest) < tarfile.BLOCKSIZE:
        raise BrokenTar(f"is cut short at byte {length}")
    if any(rest[: tarfile.BLOCKSIZE]) or len(rest) > _PADDING:
        raise BrokenTar(f"is damaged at byte {at}, where a header should be")


def list_images(file: BinaryIO, stop: int | None = None) -> Images:
    """The images of the tar that begins where `file` stands, whatever folders they are in.

    Hidden and other files are left out. What is wrong is said in `fault`, after the first of which
    the list ends. Of two images of one name the last is listed, which the tar program would keep.
    """
    names, offsets, sizes, fault = list[bytes](), array("q"), array("q"), ""
    try:
        for member in members(file, stop):
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
    found = np.array(names, np.bytes_)
    order = np.argsort(found, kind="stable")
    found = found[order]
    last = np.append(found[1:] != found[:-1], True)[: len(found)]
    if not last.all() and not fault:
        fault = f"holds {os.fsdecode(found[~last][0])!r} twice"
    order = order[last]
    return Images(found[last], np.array(offsets)[order], np.array(sizes)[order], fault)


@dataclass(frozen=True)
class TarBytes:
    """Reads N images of a tar by their places. Picklable; for any thread, process or fork.

    The file is opened once in each process, when the first image is read, and only read at given
    positions: no position is shared.
    """

    path: str
    stamp: tuple[int, int]  # size and time of the last change, ns, when it was indexed
    offsets: npt.NDArray[np.int64] = field(repr=False)  # [N]
    sizes: npt.NDArray[np.int64] = field(repr=False)  # [N]

    def read(self, i: int) -> bytes:
        """The bytes of image `i`.

        Raises OSError if they cannot be read, UserError if the tar is not what was indexed.
        """
        size, offset = int(self.sizes[i]), int(self.offsets[i])
        handle = self.__dict__.get("_handle")
        if handle is None:
            handle = self._open()
        data = os.pread(handle, size, offset)
        while len(data) < size:  # a signal or a network file system may cut a read
            more = os.pread(handle, size - len(data), offset + len(data))
            if not more:  # no fault of this image, which others could stand in for
                raise UserError(
                    f"{self.path} has changed since it was indexed: it ends at byte "
                    f"{offset + len(data)}, inside an image"
                )
            data += more
        return data

    def only(self, which: npt.NDArray[np.int64]) -> "TarBytes":
        """These images, in this order."""
        return TarBytes(self.path, self.stamp, self.offsets[which], self.sizes[which])

    def _open(self) -> int:
        handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(handle)
        if (status.st_size, status.st_mtime_ns) != self.stamp:
            os.close(handle)
            raise UserError(
                f"{self.path} has changed since it was indexed (its size or time of change): "
                "start the same command again to have it indexed anew"
            )
        # No lock, which a fork could inherit held: of two threads that open it, one stays.
        kept: int = self.__dict__.setdefault("_handle", handle)
        if kept == handle:
            weakref.finalize(self, os.close, handle)
        else:
            os.close(handle)
        return kept

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, which belongs to this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_handle"}


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of the last change, ns. Raises UserError if the file cannot be looked at."""
    with readable(path):
        status = os.stat(path)
    return status.st_size, status.st_mtime_ns
