"""The payload of a request that did not arrive in one piece with its header.

A connection has at most one of these at a time: what is received goes into it until it is whole,
so memory does not grow with the size of a request. The transmission asks only ``portion``,
``take``, ``remaining`` and ``complete``.
"""

from __future__ import annotations

from collections.abc import Callable

from flexmigrate.image.kernel.calls import PAGE
from flexmigrate.image.storage import FastPath
from flexmigrate.server.commands import Commands
from flexmigrate.wire.requests import Refusal

MOST_AT_ONCE = 512 * 1024
"""Bytes of a long write that the kernel is given at a time."""

MOST_OF_NEW = 256 * 1024
"""Likewise, where the page cache has to find memory for them. A filesystem takes as large a piece
of it as it can get, and large pieces are those that nobody has used before: filling such takes a
virtual machine three times as long. (A new file of 1 GiB takes 0.2 s with 256 KiB, and 0.7 with 1
MiB.)
"""


UNLOOKED = 16
"""Of so many long writes one after the other, one is looked at, which takes 10 to 20 us."""


class Pieces:
    """The size of the pieces in which one connection's long writes are carried out."""

    def __init__(self, fast: FastPath) -> None:
        self._fast = fast
        self._end = -1
        self._left = 0  # so many more that follow are taken to be like the last one
        self._most = MOST_OF_NEW

    def most(self, offset: int, length: int) -> int:
        """Return how many bytes the kernel is given at a time of a write, by whether the page cache
        has the first one already.
        """
        if offset != self._end or not self._left:
            self._most = MOST_AT_ONCE if self._fast.is_resident(offset, 1) else MOST_OF_NEW
            self._left = UNLOOKED
        self._left -= 1
        self._end = offset + length
        return self._most


class Payload:
    """Bytes that still belong to the request *cookie*.

    :ivar remaining: how many are still to come.
    :ivar is_long: it is worth while to receive it, and the next one, in pieces of their own.
    """

    is_long = False

    def __init__(self, commands: Commands, cookie: int, offset: int, length: int) -> None:
        self.commands = commands
        self.cookie = cookie
        self.offset = offset
        self.remaining = length

    def portion(self, available: int) -> int:
        """Return how many of *available* bytes to take now; the others are offered again, at once
        or, after a 0, with more behind them.
        """
        return min(available, self.remaining)

    def take(self, piece: memoryview) -> int:
        """Deal with the next *piece*, of ``portion`` bytes, which must not be kept; return how many
        bytes of the image that has changed.
        """
        self.remaining -= len(piece)
        return 0

    def complete(self) -> None:
        """All was taken: answer the request."""
        raise TypeError("a payload that nobody waits for")


class Drained(Payload):
    """The payload of a refused request: thrown away, so that the connection lives; then the
    refusal.
    """

    def __init__(
        self, commands: Commands, cookie: int, offset: int, length: int, refusal: Refusal
    ) -> None:
        super().__init__(commands, cookie, offset, length)
        self._refusal = refusal

    def complete(self) -> None:
        self.commands.refuse(self.cookie, self.offset, self._refusal)


class LongWrite(Payload):
    """A write that is carried out piece by piece while it arrives.

    After the first failure the rest is thrown away, and the failure is the answer.

    :param most: bytes of a piece.
    """

    def __init__(
        self,
        commands: Commands,
        cookie: int,
        offset: int,
        length: int,
        most: int,
        *,
        durable: bool = False,
    ) -> None:
        super().__init__(commands, cookie, offset, length)
        self._position = offset
        self._length = length
        self._durable = durable
        self.is_long = length >= MOST_OF_NEW
        self._most = most
        self._error: OSError | None = None

    def portion(self, available: int) -> int:
        """Return what ends where a page ends: to write a part of a page, the kernel may have to
        read it first, and a block of zeroes in two parts would not be seen to be one.
        """
        if available > self._most:
            available = self._most
        if available >= self.remaining:
            return self.remaining
        return max((self._position + available) // PAGE * PAGE - self._position, 0)

    def take(self, piece: memoryview) -> int:
        size = len(piece)
        self.remaining -= size
        if self._error is not None:
            return 0
        position = self._position
        self._position = position + size
        return self.commands.write_piece(position, piece, self)

    def fail(self, error: OSError) -> None:
        """A piece could not be written."""
        self._error = self._error or error

    def complete(self) -> None:
        if self._error is not None:
            self.commands.failed(self.cookie, self.offset, self._length, self._error)
        else:
            self.commands.written(self.cookie, self.offset, self._durable)


class Message(Payload):
    """The payload of a private command: small, so it is kept until it is whole.

    :param begin: called with all of it.
    """

    def __init__(
        self,
        commands: Commands,
        cookie: int,
        offset: int,
        length: int,
        begin: Callable[[bytes], None],
    ) -> None:
        super().__init__(commands, cookie, offset, length)
        self._begin = begin
        self._kept = bytearray()

    def take(self, piece: memoryview) -> int:
        self._kept += piece
        return super().take(piece)

    def complete(self) -> None:
        self._begin(bytes(self._kept))


class StatusFilter(Payload):
    """The payload of BLOCK_STATUS: an effect length, then the meta contexts wanted. Small, so it
    is kept.
    """

    def __init__(
        self, commands: Commands, cookie: int, offset: int, length: int, flags: int
    ) -> None:
        super().__init__(commands, cookie, offset, length)
        self._flags = flags
        self._kept = bytearray()

    def take(self, piece: memoryview) -> int:
        self._kept += piece
        return super().take(piece)

    def complete(self) -> None:
        self.commands.filtered_status(self.cookie, self._flags, self.offset, bytes(self._kept))
