"""A copy-on-write overlay: changes to a device that stays as it is, kept in memory."""

import errno
from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import DeferredLock, maybeDeferred
from zope.interface import implementer

from flexmigrate import Extent, IBlockDevice

BLOCK = 4096
PIECE = 1024 * 1024


@implementer(IBlockDevice)
class Overlay:
    """The content of *base*, overlaid with the blocks that were changed since.

    :param base: provides IBlockDevice; it is only read, and closed with this.
    """

    read_only = False

    def __init__(self, base: Any) -> None:
        self.size = base.size
        self._base = base
        self._blocks: dict[int, bytearray] = {}
        # A block is fetched before a part of it is changed; two who do so at once would each undo
        # what the other has written.
        self._changing = DeferredLock()

    async def read(self, offset: int, length: int) -> bytes:
        end = offset + length
        found = bytearray()
        while offset < end:
            index = offset // BLOCK
            stop = min(end, (index + 1) * BLOCK)
            if index in self._blocks:
                at = index * BLOCK
                found += self._blocks[index][offset - at : stop - at]
            else:
                # As much as lies below in one piece, with one request.
                while stop < end and stop // BLOCK not in self._blocks:
                    stop = min(end, stop + BLOCK)
                found += await maybeDeferred(self._base.read, offset, stop - offset)
            offset = stop
        return bytes(found)

    async def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        await self._changing.acquire()
        try:
            await self._write(memoryview(data), offset)
        finally:
            self._changing.release()

    async def _write(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            index, within = divmod(offset + done, BLOCK)
            size = min(BLOCK - within, len(data) - done)
            if index not in self._blocks:
                block = bytearray(BLOCK)
                below = min(BLOCK, self.size - index * BLOCK)
                if size < below:
                    block[:below] = await maybeDeferred(self._base.read, index * BLOCK, below)
                self._blocks[index] = block
            self._blocks[index][within : within + size] = data[done : done + size]
            done += size

    async def zero(
        self, offset: int, length: int, *, may_punch: bool, fast_only: bool = False
    ) -> None:
        if fast_only:
            raise OSError(errno.ENOTSUP, "zeroes take as long as any data")
        for at in range(offset, offset + length, PIECE):
            await self.write(bytes(min(PIECE, offset + length - at)), at)

    def trim(self, offset: int, length: int) -> None:
        """Nothing is gained by forgetting: what lies below would come to light."""

    def flush(self) -> None:
        """There is nothing more durable to bring it to."""

    async def extents(self, offset: int, length: int) -> Iterable[Extent]:
        return [Extent(offset, length, True)]

    async def close(self) -> None:
        self._blocks.clear()
        await maybeDeferred(self._base.close)
