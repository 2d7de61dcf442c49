"""Which bytes of an image an attempt has brought: what decides whether it was a whole one.

Errs to one side only: "not complete" may be wrong, for an attempt in more pieces than anyone sends,
and costs another attempt; "complete" is never wrong, for it lets a destination own the image.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

# How many intervals are kept, at 100 bytes or so each. A sender that goes from front to back has as
# many as it has requests under way; only one that writes at random all over has thousands.
MAX_FRAGMENTS = 65536

# What is left of them when there were more: forgetting costs milliseconds, and so is done for many.
_KEPT = MAX_FRAGMENTS * 3 // 4


class Coverage:
    """What was written, zeroed or trimmed of *size* bytes; at first, nothing.

    :ivar covered: bytes known to be covered, each counted once.
    :ivar writes: requests that were done.
    :ivar spoiled: the first request that failed, in words; None as long as none did.
    """

    __slots__ = ("_ends", "_starts", "covered", "size", "spoiled", "writes")

    def __init__(self, size: int) -> None:
        self.size = size
        self.covered = 0
        self.writes = 0
        self.spoiled: str | None = None
        # Ascending, without overlaps, and no interval touches the next.
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def complete(self) -> bool:
        """Every byte was covered, by at least one request, and no request failed."""
        return self.covered == self.size and self.writes > 0 and self.spoiled is None

    def mark(self, offset: int, length: int) -> None:
        """A request is done that wrote, zeroed or trimmed a range of at least one byte."""
        self.writes += 1
        starts, ends = self._starts, self._ends
        end = offset + length
        # The intervals that the range overlaps or touches become one with it.
        left = bisect_left(ends, offset)
        right = bisect_right(starts, end, left)
        if right == left + 1:
            # Nearly always: one interval, which becomes longer.
            if offset < starts[left]:
                self.covered += starts[left] - offset
                starts[left] = offset
            if end > ends[left]:
                self.covered += end - ends[left]
                ends[left] = end
            return
        if left < right:
            self.covered -= sum(ends[left:right]) - sum(starts[left:right])
            offset = min(offset, starts[left])
            end = max(end, ends[right - 1])
        starts[left:right] = (offset,)
        ends[left:right] = (end,)
        self.covered += end - offset
        if len(starts) > MAX_FRAGMENTS:
            self._forget_smallest()

    def failed(self, offset: int, length: int, error: BaseException) -> None:
        """A request failed: what its range holds is unknown, and the attempt can't be made good."""
        if self.spoiled is None:
            self.spoiled = f"{length} bytes at {offset}: {error}"

    def refused(self, text: str) -> None:
        """A change was refused: the sender means an image that isn't like this one."""
        if self.spoiled is None:
            self.spoiled = text

    def _forget_smallest(self) -> None:
        pairs = sorted(
            zip(self._starts, self._ends, strict=True), key=lambda pair: pair[0] - pair[1]
        )
        del pairs[_KEPT:]
        pairs.sort()
        self._starts = [start for start, _ in pairs]
        self._ends = [end for _, end in pairs]
        self.covered = sum(self._ends) - sum(self._starts)
