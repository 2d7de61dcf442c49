"""Reads and writes at an offset that are whole, or raise.

A read that ends early means that the file was made shorter under us: nothing that this program
does, or that a client can ask for, gets there. It is an input/output error, never a shorter answer.
"""

from __future__ import annotations

import errno
from os import preadv, pwrite
from typing import TypeAlias

Readable: TypeAlias = bytes | bytearray | memoryview


def truncated(offset: int) -> OSError:
    """Return the error for an image that ends at or before *offset*, which is within its size."""
    return OSError(errno.EIO, f"the image has no byte {offset}: it was truncated while in use")


def read_exact(fd: int, view: memoryview, offset: int) -> None:
    """Fill *view* from *offset*; may wait for the disk.

    :raises OSError: as preadv(2); ``EIO`` when the file ends before the view is full.
    """
    filled = 0
    while filled < len(view):
        count = preadv(fd, (view[filled:],), offset + filled)
        if not count:
            raise truncated(offset + filled)
        filled += count


def write_exact(fd: int, view: Readable, offset: int) -> None:
    """Write all of *view* at *offset*.

    :raises OSError: as pwrite(2). Some of it may have been written by then.
    """
    written = pwrite(fd, view, offset)
    while written < len(view):
        # The kernel writes less when something is in the way of the rest; trying that says what.
        written += pwrite(fd, memoryview(view)[written:], offset + written)


class Held:
    """Bytes that were read and are to be sent: a source without a descriptor.

    :ivar fd: None.
    """

    fd = None

    def __init__(self, offset: int, data: bytes) -> None:
        self._offset = offset
        self._data = memoryview(data)

    def read(self, offset: int, length: int) -> memoryview:
        """Return *length* bytes from *offset*, which were read."""
        start = offset - self._offset
        return self._data[start : start + length]
