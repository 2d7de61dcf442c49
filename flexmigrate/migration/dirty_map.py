"""The dirty map: the blocks of an image that were changed since they were last sent. No I/O.

One byte a block, because ``find`` and ``count`` of a bytearray run at the speed of memory, where
bits would be a loop in Python. Rewriting a block costs nothing more, and the size never changes,
however much is written: marking can't fail, and never makes a writer wait.

The order that loses nothing is the callers' duty: a block is marked *after* it was changed and
*before* that is answered; its mark is taken *before* it is read for sending. A change then meets a
mark that is still to be taken, or sets one for the next pass.
"""

from __future__ import annotations

from collections.abc import Iterator

# The block of nearly every filesystem, and so the least that guests write.
MIN_BLOCK = 4096

# Bytes a map may take; a migration that compares has two. 4 KiB blocks up to 64 GiB; an image of 1
# TiB has blocks of 64 KiB.
MAX_MAP = 16 * 1024 * 1024

_CLEAN, _DIRTY = 0, 1

_MANY_MARKS = memoryview(bytes((_DIRTY,)) * 65536)


class DirtyMap:
    """The dirty map of an image of *size* bytes; at first all blocks are clean.

    :param block_size: bytes, a power of two; None for the smallest that keeps the map within
        ``MAX_MAP``, and at least ``MIN_BLOCK``.
    :ivar count: the exact number of marked blocks.
    """

    __slots__ = ("_beyond", "_marks", "_shift", "_taken", "block_size", "count", "size")

    def __init__(self, size: int, block_size: int | None = None) -> None:
        if block_size is None:
            block_size = MIN_BLOCK
            while size > block_size * MAX_MAP:
                block_size *= 2
        if block_size < 1 or block_size & (block_size - 1):
            raise ValueError(f"a block size must be a power of two, not {block_size}")
        self.size = size
        self.block_size = block_size
        self.count = 0
        self._taken = 0
        self._shift = block_size.bit_length() - 1
        self._marks = bytearray(-(-size // block_size))
        # So many bytes of the last block are behind the image.
        self._beyond = (len(self._marks) << self._shift) - size

    @property
    def bytes(self) -> int:
        """The number of bytes in marked blocks, up to the end of the image."""
        whole = self.count << self._shift
        return whole - self._beyond if self._marks and self._marks[-1] else whole

    @property
    def taken(self) -> int:
        """The number of bytes whose marks were taken so far, up to the end of the image."""
        return self._taken

    @property
    def dirtied(self) -> int:
        """The number of clean bytes that were marked so far, up to the end of the image."""
        return self.bytes + self._taken

    def mark(self, offset: int, length: int) -> None:
        """Mark all blocks that a range of at least one byte touches.

        :raises IndexError: the range goes beyond the image's last block; nothing was marked.
        """
        shift = self._shift
        first = offset >> shift
        last = (offset + length - 1) >> shift
        if first == last:
            if not self._marks[first]:
                self._marks[first] = _DIRTY
                self.count += 1
        else:
            self._mark_blocks(first, last + 1)

    def _mark_blocks(self, first: int, end: int) -> None:
        marks = self._marks
        if end > len(marks):
            raise IndexError(f"block {end - 1} of {len(marks)} can't be marked")
        clean = marks.count(_CLEAN, first, end)
        if clean:
            # Piece by piece: else marking all of a large image took as much memory as its map.
            for at in range(first, end, len(_MANY_MARKS)):
                piece = _MANY_MARKS[: end - at]
                marks[at : at + len(piece)] = piece
            self.count += clean

    def flush_failed(self, error: BaseException) -> None:
        """A flush failed, which changed nothing of what is read, and so of what is sent."""

    def failed(self, offset: int, length: int, error: BaseException) -> None:
        """A write failed, and may have changed a part of its range: that is a change like any."""
        self.mark(offset, length)

    def refused(self, text: str) -> None:
        """A change was refused before it began: nothing is dirty for it."""

    def take(self, max_bytes: int, start: int = 0, bridge: int = 0) -> tuple[int, int] | None:
        """Take the marks from the next run of marked blocks, and return its (offset, length).

        :param max_bytes: the length isn't more than this, but for one block, which is the least.
        :param start: bytes; the search begins with the block that this is in, and doesn't go round.
        :param bridge: bytes; runs with no more than so many clean ones between them are one.
        :return: None when no block is marked from there to the end.
        """
        marks, shift = self._marks, self._shift
        first = marks.find(_DIRTY, start >> shift)
        if first < 0:
            return None
        limit = min(first + max(max_bytes >> shift, 1), len(marks))
        end = self._run_end(first, limit)
        marked = end - first
        gap = bridge >> shift
        while gap and (after := marks.find(_DIRTY, end, min(end + gap + 1, limit))) >= 0:
            end = self._run_end(after, limit)
            marked += end - after
        marks[first:end] = bytes(end - first)
        self.count -= marked
        # A run ends with a block that was marked, so with the last one if it comes as far.
        self._taken += (marked << shift) - (self._beyond if end == len(marks) else 0)
        return self._range(first, end)

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Tell the (offset, length) of each run of marked blocks in a range, clipped to it.

        The marks stay. Marks made or taken while this is iterated over may be seen, or not.
        """
        marks, shift = self._marks, self._shift
        stop = offset + length
        limit = min(-(-stop >> shift), len(marks))
        first = marks.find(_DIRTY, offset >> shift, limit)
        while first >= 0:
            end = self._run_end(first, limit)
            begin = max(first << shift, offset)
            yield begin, min(end << shift, stop, self.size) - begin
            first = marks.find(_DIRTY, end, limit)

    def bytes_in(self, offset: int, length: int) -> int:
        """Return how many bytes the marked blocks have in a range; *offset* begins a block."""
        shift = self._shift
        end = min(offset + length, self.size)
        first, last = offset >> shift, -(-end >> shift)
        found = self._marks.count(_DIRTY, first, last) << shift
        if last > first and self._marks[last - 1]:
            found -= (last << shift) - end
        return found

    def _run_end(self, first: int, limit: int) -> int:
        end = self._marks.find(_CLEAN, first, limit)
        return limit if end < 0 else end

    def _range(self, first: int, end: int) -> tuple[int, int]:
        offset = first << self._shift
        return offset, min(end << self._shift, self.size) - offset
