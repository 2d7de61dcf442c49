"""The extents of an image: its ranges of data, and its holes.

A hole reads as zeroes and takes no storage. An extent is valid at the moment when
it is returned: a walk during writes may or may not see each of them, so the caller
keeps a dirty map for those that it misses.

Whether a filesystem is asked at all is decided once, when the image is opened
(``trust.py``): nobody else calls lseek(2).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from flexmigrate.image.exact import truncated


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of bytes that is data, or is a hole.

    :ivar offset: bytes from the beginning of the image.
    :ivar length: in bytes, more than 0.
    :ivar data: False for a hole.
    """

    offset: int
    length: int
    data: bool

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.length


def merge(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours of one kind in an ascending sequence without gaps, lazily."""
    pending: Extent | None = None
    for extent in extents:
        if pending is not None and pending.data == extent.data:
            pending = Extent(pending.offset, pending.length + extent.length, extent.data)
            continue
        if pending is not None:
            yield pending
        pending = extent
    if pending is not None:
        yield pending


class Extents(Protocol):
    """The source of an image's extents; nothing else looks for holes."""

    def walk(self, start: int, end: int) -> Iterator[Extent]:
        """Yield the extents from byte *start* to byte *end* (not included), looked up as they are
        asked for.

        Ascending, without gaps, clipped to the range. Neighbours may be of one kind when somebody
        writes meanwhile.

        :raises OSError: ``EIO`` when the file ends before *end*.
        """

    def next_data(self, position: int, end: int) -> int:
        """Return the offset of the next data from *position* on, or *end* if that comes first.
        Raises as `walk`.

        Cheaper than the first extent of a walk, for which the end of the data has to be found, too.
        """

    def has_holes(self, size: int) -> bool:
        """Return whether the first *size* bytes have a hole now."""

    @property
    def may_come(self) -> bool:
        """Whether zeroing or trimming may make holes."""


class AllData:
    """The extents of storage that can't list its holes: all of it is data."""

    may_come = False

    def walk(self, start: int, end: int) -> Iterator[Extent]:
        """As `Extents.walk`."""
        if start < end:
            yield Extent(start, end - start, data=True)

    def next_data(self, position: int, end: int) -> int:
        """As `Extents.next_data`."""
        return position

    def has_holes(self, size: int) -> bool:
        """As `Extents.has_holes`."""
        return False


class ToldExtents:
    """The extents that a file's filesystem reports, if it is trusted (``filesystems.py``).

    :param seek: lseek(2) of the file: called with a position and SEEK_DATA or SEEK_HOLE.
    :param file_size: returns the current size of the file in bytes.
    """

    may_come = True

    def __init__(self, seek: Callable[[int, int], int], file_size: Callable[[], int]) -> None:
        self._lseek = seek
        self._file_size = file_size

    @classmethod
    def of(cls, fd: int) -> ToldExtents:
        """Return the extents of an open file."""
        # The position that lseek leaves behind is shared by all threads and used by none of them:
        # every read and write says its offset.
        return cls(
            lambda position, whence: os.lseek(fd, position, whence), lambda: os.fstat(fd).st_size
        )

    def walk(self, start: int, end: int) -> Iterator[Extent]:
        """Walk as `Extents.walk`. If the filesystem can't tell (lseek(2): ``EINVAL``), all is data.

        The kernel takes what lies behind the end of a file for a hole; to us it is a loss of data,
        and must not be copied as zeroes.
        """
        position = start
        while position < end:
            data = self._seek(position, end, os.SEEK_DATA)
            if data > position:
                yield Extent(position, data - position, data=False)
            if data < end:
                hole = self._seek(data, end, os.SEEK_HOLE)
                if hole > data:
                    yield Extent(data, hole - data, data=True)
                data = hole
            position = data

    def next_data(self, position: int, end: int) -> int:
        """As `Extents.next_data`."""
        return self._seek(position, end, os.SEEK_DATA)

    def has_holes(self, size: int) -> bool:
        """As `Extents.has_holes`; False also where that can't be told."""
        try:
            return self._lseek(0, os.SEEK_HOLE) < size
        except OSError:
            return False

    def _seek(self, position: int, end: int, whence: int) -> int:
        """Return the next data or hole at or after *position*, or *end* if that comes first."""
        try:
            found = self._lseek(position, whence)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return position if whence == os.SEEK_DATA else end
            if error.errno != errno.ENXIO:
                raise
            # Nothing there, because only a hole follows or because the file ends.
            size = self._file_size()
            if size < end:
                raise truncated(size) from error
            return end if whence == os.SEEK_DATA else position
        return min(found, end)
