"""A disk in memory, gone when the program ends: the simplest block device there is."""

from collections.abc import Iterable

from zope.interface import implementer

from flexmigrate import Extent, IReadyBlockDevice


@implementer(IReadyBlockDevice)
class MemoryDevice:
    """Bytes in memory, all of which are there at once.

    :param content: what it holds in the beginning; its length is the device's.
    """

    read_only = False

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._bytes = bytearray(content)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._bytes[offset : offset + length])

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._bytes[offset : offset + len(data)] = data

    def zero(self, offset: int, length: int, *, may_punch: bool, fast_only: bool = False) -> None:
        self._bytes[offset : offset + length] = bytes(length)

    def trim(self, offset: int, length: int) -> None:
        self._bytes[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        """There is nothing more durable to bring it to."""

    def extents(self, offset: int, length: int) -> Iterable[Extent]:
        return [Extent(offset, length, True)]

    def close(self) -> None:
        self._bytes = bytearray()

    # At once

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        view[:] = self._bytes[offset : offset + len(view)]
        return True

    def may_block_write(self, offset: int, length: int) -> bool:
        return False

    def write_now(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self.write(data, offset)
