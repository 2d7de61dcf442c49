"""Advice to the page cache while an image is sent: which ranges to read soon, and which ones to
drop.
"""

from __future__ import annotations

from flexmigrate.image.storage import Storage
from flexmigrate.migration.dirty_map import DirtyMap

READ_AHEAD = 8 * 1024 * 1024
"""Bytes of small pieces that the disk is told of at a time, which keeps it busy: as much as 1 GiB/s
brings in 8 ms. (8192 pieces of 64 KiB take 1.4 s, or 3.0 s without.)"""

DROP_BYTES = 16 * 1024 * 1024
"""Bytes that are dropped at a time, where the page cache isn't to be filled with what was sent."""


class CacheAdvice:
    """The advice about *storage* while what is *dirty* is sent, pass by pass.

    :param longest: bytes of a piece of which the disk isn't told, since the kernel reads ahead by
        itself: nothing was gained by telling it.
    :ivar told: how far, in bytes, the disk was told of this pass; 0 if it wasn't.
    """

    def __init__(self, storage: Storage, dirty: DirtyMap, longest: int) -> None:
        self._storage = storage
        self._dirty = dirty
        self._longest = longest
        self._to_drop: list[tuple[int, int]] = []
        self._to_drop_bytes = 0
        self.told = 0

    def begin_pass(self) -> None:
        """Begin anew at the image's first byte."""
        self.told = 0

    def look_ahead(self, position: int) -> None:
        """Have the disk read what is sent from *position* on."""
        if position + READ_AHEAD // 2 <= self.told:
            return
        position = max(position, self.told)
        runs: list[tuple[int, int]] = []
        left = READ_AHEAD
        for offset, length in self._dirty.runs(position, self._storage.size - position):
            if length < self._longest:
                runs.append((offset, length))
            self.told = offset + min(length, left)
            left -= length
            if left <= 0:
                break
        else:
            self.told = self._storage.size
        if runs:
            self._storage.will_need(runs)

    def sent(self, _: None, offset: int, length: int) -> None:
        """The destination has a range: it was mostly read into the page cache for this."""
        self._to_drop.append((offset, length))
        self._to_drop_bytes += length
        if self._to_drop_bytes >= DROP_BYTES:
            self.drop()

    def drop(self) -> None:
        """Drop what was sent, and isn't dropped yet."""
        if self._to_drop:
            ranges, self._to_drop = self._to_drop, []
            self._to_drop_bytes = 0
            if self._storage.flush_failure is None:  # else it may be all that there is
                self._storage.drop_cached(ranges)
