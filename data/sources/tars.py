"""Reading images from uncompressed tar files in place.

The standard library's tarfile reads the headers and seeks from one to the next: image data is
skipped, and no list of members is built up. tarfile takes a bad header for the end of the archive,
so the end is checked here.
"""

import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from common.errors import UserError, refusing
from data.sources.cache import Stamp, stamp
from data.sources.folders import is_image

_BUFFER = 1024  # bytes, for a header and the byte before it, which tarfile looks at
# A block of zeros ends a tar, which is then padded to a whole record. If more follows, the zeros
# are a hole, as an interrupted download may leave it, with images behind it.
_PADDING = 2 * tarfile.RECORDSIZE


class BrokenTar(Exception):
    """The tar is damaged; the message says where, as in "is cut short at byte 512"."""


@dataclass(frozen=True)
class TarListing:
    """N images of a tar, and where their bytes are."""

    names: npt.NDArray[np.bytes_]  # [N] file names, without folders
    offsets: npt.NDArray[np.int64]  # [N] bytes from the start of the file
    sizes: npt.NDArray[np.int64]  # [N] bytes
    fault: str = ""  # what is wrong with the tar, as in "is cut short at byte 512"

    def __len__(self) -> int:
        return len(self.names)

    def only(self, rows: npt.NDArray[np.int64]) -> "TarListing":
        """These images, in this order."""
        return TarListing(self.names[rows], self.offsets[rows], self.sizes[rows], self.fault)


def join(listings: Sequence[TarListing]) -> TarListing:
    """The images of all these listings, one listing after the other."""
    nothing = TarListing(np.zeros(0, "S1"), np.zeros(0, np.int64), np.zeros(0, np.int64))
    listings = [nothing, *listings]
    return TarListing(
        np.concatenate([listing.names for listing in listings]),
        np.concatenate([listing.offsets for listing in listings]),
        np.concatenate([listing.sizes for listing in listings]),
    )


def readable(path: Path) -> AbstractContextManager[None]:
    """Turns an OSError raised inside into a UserError that names the file."""
    return refusing(OSError, what=f"cannot read {path}", also="it must be a file that you may read")


def open_tar(path: Path) -> BinaryIO:
    """The file, for `read_headers`. Raises UserError if it cannot be opened."""
    with readable(path):
        return open(path, "rb", buffering=_BUFFER)


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file. Raises UserError if it is not accessible."""
    with readable(path):
        return stamp(os.stat(path))


def read_headers(file: BinaryIO, stop: int | None = None) -> Iterator[tarfile.TarInfo]:
    """All headers of the tar that begins at the position of `file`; offset_data is in `file`.

    stop: where the tar must end, if it is a member of another tar. The file may be used for other
    things between two headers. Raises BrokenTar after the last intact member.
    """
    length = os.fstat(file.fileno()).st_size
    end, position = length if stop is None else stop, file.tell()
    try:
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            while position < end and (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if member.size < 0 or tar.offset <= position:
                    raise BrokenTar(f"is damaged at byte {position}")
                if max(member.offset_data + member.size, tar.offset) > end:
                    raise BrokenTar(f"is cut short at byte {end}, inside {member.name!r}")
                position = tar.offset
                yield member
    except tarfile.TarError as error:
        if file.tell() >= length:
            raise BrokenTar(f"is cut short at byte {length}") from error
        raise BrokenTar(
            f"is damaged, or no uncompressed tar, at byte {position} ({error})"
        ) from error
    if position == stop:
        return  # written without the mark that ends a tar; its size in the outer tar is enough
    file.seek(position)
    rest = file.read(min(end - position, _PADDING + 1))
    if len(rest) < tarfile.BLOCKSIZE:
        raise BrokenTar(f"is cut short at byte {length}")
    if any(rest[: tarfile.BLOCKSIZE]) or len(rest) > _PADDING:
        raise BrokenTar(f"is damaged at byte {position}, where a header should be")


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
        file = self.__dict__.get("_file") or self._open()
        data = os.pread(file.fileno(), size, offset)
        while len(data) < size:  # a signal or a network file system may cut a read short
            more = os.pread(file.fileno(), size - len(data), offset + len(data))
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

    def _open(self) -> FileIO:
        file = FileIO(self.path)
        status = os.fstat(file.fileno())
        if (status.st_size, status.st_mtime_ns) != self.stamp:
            file.close()
            raise UserError(
                f"{self.path} has changed since it was indexed (its size or modification time): "
                "type the same command again to index it anew"
            )
        # No lock, which a fork could inherit while it is held: if two threads open the file, one
        # keeps the other's.
        return self.__dict__.setdefault("_file", file)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open file, which belongs to this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_file"}
