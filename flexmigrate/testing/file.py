"""A file of a machine's disk in memory: its bytes as processes see them, and as far as they are on
stable storage. See :mod:`flexmigrate.testing.disk`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from flexmigrate.image.file import SECTOR


class SimulatedFile:
    """What names lead to.

    :ivar seen: its bytes, as processes see them.
    :ivar stable: its bytes, as far as they were synced.
    :ivar unsynced: what makes one of the other: (offset, bytes) were written, or (size, None): it
        was cut there.
    :ivar user: who has it locked.
    """

    __slots__ = ("inode", "links", "seen", "stable", "unsynced", "user")

    def __init__(self, inode: int, data: bytes = b"") -> None:
        self.inode = inode
        self.links = 1
        self.seen = bytearray(data)
        self.stable = bytearray(data)
        self.unsynced: list[tuple[int, bytes | None]] = []
        self.user: object = None

    def copy(self) -> SimulatedFile:
        """Return another that is as this one is now, and that nobody has locked."""
        other = SimulatedFile(self.inode)
        other.links = self.links
        other.seen[:] = self.seen
        other.stable[:] = self.stable
        other.unsynced = list(self.unsynced)
        return other

    def write(self, offset: int, data: bytes) -> None:
        """Write *data*; it is not durable yet."""
        _put(self.seen, offset, data)
        self.unsynced.append((offset, data))

    def cut(self, size: int) -> None:
        """Let it have *size* bytes; that is not durable yet."""
        del self.seen[size:]
        self.unsynced.append((size, None))

    def sync(self) -> None:
        """Make durable what it holds."""
        if self.unsynced:
            self.stable[:] = self.seen
            self.unsynced = []

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


def _put(where: bytearray, offset: int, data: bytes) -> None:
    if offset > len(where):
        where.extend(bytes(offset - len(where)))
    where[offset : offset + len(data)] = data
