"""A file of a machine's disk in memory: its bytes as processes see them, and as far as they are on
stable storage. See :mod:`flexmigrate.testing.disk`.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

SECTOR = 512
"""What a disk writes wholly or not at all, in bytes."""


class SimulatedFile:
    """A file that names lead to.

    :ivar seen: its bytes, as processes see them.
    :ivar stable: its bytes, as far as they were synced.
    :ivar unsynced: what makes one of the other: (offset, bytes) were written, or (size, None): it
        was cut there.
    :ivar attributes: its extended attributes, by name, as processes see them.
    :ivar stable_attributes: likewise, as far as they were synced.
    :ivar has_lost: *seen* has bytes that aren't *stable* and that nobody is going to write: to
        write them back has failed, and the page cache holds them as if they were on the disk.
    :ivar user: who has it locked.
    """

    __slots__ = (
        *("_errors", "_is_told", "_number", "stable_attributes", "attributes", "has_lost"),
        *("inode", "links", "seen", "stable", "unsynced", "user"),
    )

    def __init__(self, inode: int, data: bytes = b"") -> None:
        self.inode = inode
        self.links = 1
        self.seen = bytearray(data)
        self.stable = bytearray(data)
        self.unsynced: list[tuple[int, bytes | None]] = []
        self.attributes: dict[str, bytes] = {}
        self.stable_attributes: dict[str, bytes] = {}
        self.has_lost = False
        self._errors = 0
        self._number = 0
        self._is_told = True
        self.user: object = None

    def copy(self) -> SimulatedFile:
        """Return another that is as this one is now, and that nobody has locked."""
        other = SimulatedFile(self.inode)
        other.links = self.links
        other.seen[:] = self.seen
        other.stable[:] = self.stable
        other.unsynced = list(self.unsynced)
        other.attributes = dict(self.attributes)
        other.stable_attributes = dict(self.stable_attributes)
        other.has_lost = self.has_lost
        other._errors = self._errors
        other._number = self._number
        other._is_told = self._is_told
        return other

    def write(self, offset: int, data: bytes) -> None:
        """Write *data*; it is not durable yet."""
        _put(self.seen, offset, data)
        self.unsynced.append((offset, data))

    def cut(self, size: int) -> None:
        """Let it have *size* bytes; that is not durable yet."""
        del self.seen[size:]
        self.unsynced.append((size, None))

    @property
    def is_synced(self) -> bool:
        """Whether none of its bytes would be lost if the machine failed."""
        return not self.unsynced and not self.has_lost

    def sync(self) -> None:
        """Make durable what was written and isn't; but for what was lost."""
        self.stable_attributes = dict(self.attributes)
        if self.unsynced:
            self._apply(self.stable)
            self.unsynced = []
            self.has_lost = self.has_lost and self.seen != self.stable

    def _apply(self, held: bytearray) -> None:
        """Do to *held* what isn't durable yet."""
        for offset, data in self.unsynced:
            if data is None:
                del held[offset:]
            else:
                _put(held, offset, data)

    # What a page cache does when the disk can't be written

    def lose(self, number: int = errno.EIO) -> None:
        """To write back what isn't durable has failed: nobody will try again, and whoever reads it
        finds it as if nothing had happened.

        Each opening is told *number* once, by `error_since`.
        """
        self.has_lost = self.has_lost or bool(self.unsynced)
        self.unsynced = []
        self._errors += 1
        self._number = number
        self._is_told = False

    def opened(self) -> int:
        """Return what an opening has to keep for `error_since`. Of an error that was told to
        somebody it won't hear, of one that nobody was told of it will.
        """
        return self._errors if self._is_told else self._errors - 1

    def error_since(self, seen: int) -> tuple[int, int]:
        """Return the errno of the last error since *seen*, or 0; and what is to be kept now."""
        if seen == self._errors:
            return 0, seen
        self._is_told = True
        return self._number, self._errors

    def evict(self, offset: int = 0, length: int | None = None) -> None:
        """The page cache lets go of a range, but for what isn't durable and not lost: whoever reads
        it then is told what the disk has.
        """
        if not self.has_lost:
            return
        end = len(self.seen) if length is None else offset + length
        held = self.stable[offset:end]
        self.seen[offset : end if length is not None else None] = held
        self._apply(self.seen)
        if not self.unsynced:
            self.has_lost = self.seen != self.stable

    def fail(self, keep: Callable[[random.Random], bool], draw: random.Random) -> None:
        """The machine has failed: keep of what was not synced the pieces that *keep* says."""
        for offset, data in self.unsynced:
            if data is None:
                if keep(draw):
                    del self.stable[offset:]
                continue
            for at in range(0, len(data), SECTOR):
                piece = data[at : at + SECTOR]
                if keep(draw):
                    _put(self.stable, offset + at, piece)
                elif len(piece) < SECTOR and draw.random() < 0.5:
                    _put(self.stable, offset + at, piece[: draw.randrange(len(piece) + 1)])
        self.unsynced = []
        self.seen[:] = self.stable
        if self.attributes != self.stable_attributes and not keep(draw):
            self.attributes = dict(self.stable_attributes)
        self.stable_attributes = dict(self.attributes)
        self.has_lost = False
        self._is_told = True


def _put(where: bytearray, offset: int, data: bytes) -> None:
    if offset > len(where):
        where.extend(bytes(offset - len(where)))
    where[offset : offset + len(data)] = data
