"""The coverage of an image by an attempt, which decides whether the attempt was complete.

Errs to one side only: "not complete" may be wrong, for an attempt that leaves tens of thousands of
blocks half covered, and costs another attempt; "complete" is never wrong, for it lets a destination
own the image.

A bit for each block says that all of it is covered. Partly covered blocks have a list of ranges
until they are complete: they are rare, since filesystems allocate whole blocks.
"""

from __future__ import annotations

# The block of nearly every filesystem, so that the extents of a sparse image are whole blocks.
MIN_BLOCK = 4096

# Bytes that the bits may take: with 4 KiB blocks they reach to 1 TiB, and blocks double beyond.
MAX_BITS = 32 * 1024 * 1024

# How many blocks may be covered in part at a time, at 300 bytes or so each.
MAX_FRAGMENTS = 65536

# What is left of them when there were more: forgetting takes a moment, so it is done for many.
_KEPT = MAX_FRAGMENTS * 3 // 4

_Parts = list[tuple[int, int]]


class Coverage:
    """The bytes of an image of *size* bytes that were written, zeroed or trimmed; at first none.

    :param block_size: bytes, a power of two; None for the smallest that keeps within ``MAX_BITS``.
    :ivar block_size: the size that is used.
    :ivar covered: bytes known to be covered, each counted once.
    :ivar writes: requests that were done.
    :ivar spoiled: the first request that failed, in words; None as long as none did.
    """

    __slots__ = (
        *("_parts", "_shift", "_whole", "block_size"),
        *("covered", "size", "spoiled", "writes"),
    )

    def __init__(self, size: int, block_size: int | None = None) -> None:
        if block_size is None:
            block_size = MIN_BLOCK
            while size > block_size * 8 * MAX_BITS:
                block_size *= 2
        self.size = size
        self.covered = 0
        self.writes = 0
        self.spoiled: str | None = None
        self.block_size = block_size
        self._shift = block_size.bit_length() - 1
        self._whole = bytearray((-(-size // block_size) + 7) // 8)
        self._parts: dict[int, _Parts] = {}

    @property
    def complete(self) -> bool:
        """Every byte was covered, by at least one request, and no request failed."""
        return self.covered == self.size and self.writes > 0 and self.spoiled is None

    def mark(self, offset: int, length: int) -> None:
        """A request is done that wrote, zeroed or trimmed a range of at least one byte."""
        self.writes += 1
        end = offset + length
        shift = self._shift
        first = (offset + self.block_size - 1) >> shift
        # The last block may be shorter than the others: its end is the image's.
        last = end >> shift if end < self.size else (end + self.block_size - 1) >> shift
        if first > last:
            self._mark_part(last, offset, end)
            return
        if first < last:
            self._mark_whole(first, last)
        if offset < first << shift:
            self._mark_part(first - 1, offset, min(first << shift, end))
        if last << shift < end:
            self._mark_part(last, last << shift, end)

    def bytes_in(self, offset: int, length: int) -> int:
        """Return how many bytes the blocks have that are covered wholly, in a range; *offset*
        begins a block.
        """
        shift = self._shift
        end = min(offset + length, self.size)
        first, last = offset >> shift, -(-end >> shift)
        if first >= last:
            return 0
        start = first >> 3
        bits = int.from_bytes(self._whole[start : (last + 7) >> 3], "little") >> (first & 7)
        bits &= (1 << (last - first)) - 1
        found = bits.bit_count() << shift
        if bits >> (last - first - 1):
            found -= (last << shift) - end
        return found

    def covers(self, offset: int, length: int) -> bool:
        """Tell whether all blocks that a range touches are covered wholly."""
        start = offset - offset % self.block_size
        return self.bytes_in(start, offset + length - start) == offset + length - start

    def failed(self, offset: int, length: int, error: BaseException) -> None:
        """A request failed: what its range holds is unknown, and the attempt can't be made good."""
        if self.spoiled is None:
            self.spoiled = f"writing {length} bytes at {offset} failed: {error}"

    def flush_failed(self, error: BaseException) -> None:
        """A flush failed: what any range holds on the disk is unknown."""
        if self.spoiled is None:
            self.spoiled = str(error)

    def refused(self, text: str) -> None:
        """A change was refused: the sender means an image that isn't like this one."""
        if self.spoiled is None:
            self.spoiled = text

    def _mark_whole(self, first: int, last: int) -> None:
        """Set the bits of the blocks from *first* to before *last*, and count what is new."""
        start, stop = first >> 3, (last + 7) >> 3
        old = int.from_bytes(self._whole[start:stop], "little")
        bits = ((1 << (last - first)) - 1) << (first & 7)
        new = bits & ~old
        if not new:
            return
        self._whole[start:stop] = (old | bits).to_bytes(stop - start, "little")
        self.covered += new.bit_count() << self._shift
        beyond = (last << self._shift) - self.size
        if beyond > 0 and new >> (last - 1 - (start << 3)):
            self.covered -= beyond
        if self._parts:
            self._drop_parts(first, last)

    def _drop_parts(self, first: int, last: int) -> None:
        """Forget what covered these blocks in part: they are whole now."""
        parts = self._parts
        blocks = range(first, last)
        among = [each for each in parts if each in blocks] if len(parts) < len(blocks) else blocks
        for block in among:
            for start, end in parts.pop(block, ()):
                self.covered -= end - start

    def _mark_part(self, block: int, start: int, end: int) -> None:
        """A range within one *block* is covered."""
        if self._whole[block >> 3] >> (block & 7) & 1:
            return
        kept: _Parts = []
        for other_start, other_end in self._parts.get(block, ()):
            if other_end < start or end < other_start:
                kept.append((other_start, other_end))
            else:
                self.covered -= other_end - other_start
                start, end = min(start, other_start), max(end, other_end)
        block_start = block << self._shift
        if start == block_start and end == min(block_start + self.block_size, self.size):
            # No other part can be left beside it.
            self._parts.pop(block, None)
            self._mark_whole(block, block + 1)
            return
        self.covered += end - start
        self._parts[block] = [*kept, (start, end)]
        if len(self._parts) > MAX_FRAGMENTS:
            self._forget_smallest()

    def _forget_smallest(self) -> None:
        """Let go of the blocks of which least is covered: pessimistic, and so safe."""

        def covered(block: int) -> int:
            return sum(end - start for start, end in self._parts[block])

        for block in sorted(self._parts, key=covered)[: len(self._parts) - _KEPT]:
            self.covered -= covered(block)
            del self._parts[block]
