"""Which ranges of an image hold data and which are holes.

A hole reads as zeroes without anything being stored for it. What is told is true at the moment when
it is told: a walk that runs beside writers sees each of their writes or doesn't, and whoever walks
keeps a dirty map for those that it doesn't.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
        """The first byte behind it."""
        return self.offset + self.length


def merge(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours of one kind in an ascending sequence without gaps, as it is asked for."""
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


def walk(fd: int, start: int, end: int) -> Iterator[Extent]:
    """Go through the file from byte *start* to byte *end* (not included), asking as it is asked.

    Ascending, without gaps, clipped to the range. Where the filesystem or the device can't tell
    (lseek(2): ``EINVAL``), all is data. Neighbours may be of one kind when somebody writes
    meanwhile.

    :raises OSError: ``EIO`` when the file ends before *end*. The kernel takes what lies behind the
        end of a file for a hole; to us it is a loss of data, and must not be copied as zeroes.
    """
    # The position that lseek leaves behind is shared by all threads and used by none of them: every
    # read and write says its offset.
    position = start
    while position < end:
        data = _seek(fd, position, end, os.SEEK_DATA)
        if data > position:
            yield Extent(position, data - position, data=False)
        if data < end:
            hole = _seek(fd, data, end, os.SEEK_HOLE)
            if hole > data:
                yield Extent(data, hole - data, data=True)
            data = hole
        position = data


def next_data(fd: int, position: int, end: int) -> int:
    """Return where data begins, from *position* on; *end* if that comes first. Raises as `walk`.

    Cheaper than the first extent of a walk, for which the end of the data has to be found, too.
    """
    return _seek(fd, position, end, os.SEEK_DATA)


def _seek(fd: int, position: int, end: int, whence: int) -> int:
    """Return the next data or hole at or behind *position*, or *end* if that comes first."""
    try:
        found = os.lseek(fd, position, whence)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return position if whence == os.SEEK_DATA else end
        if error.errno != errno.ENXIO:
            raise
        # Nothing there, because only a hole follows or because the file ends.
        size = os.fstat(fd).st_size
        if size < end:
            raise truncated(size) from error
        return end if whence == os.SEEK_DATA else position
    return min(found, end)


def has_holes(fd: int, size: int) -> bool:
    """Tell whether the first *size* bytes of a file have a hole, as far as the filesystem says."""
    try:
        return os.lseek(fd, 0, os.SEEK_HOLE) < size
    except OSError:
        return False
