"""Sources of bytes that a stream transport can send."""

from __future__ import annotations

from typing import Protocol


class FileSource(Protocol):
    """A source of bytes for a peer (``net.stream``): an open file, read at offsets, or bytes in
    memory.
    """

    @property
    def fd(self) -> int | None:
        """The descriptor; None if the bytes are in memory, where ``read`` returns a view of
        them.
        """

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return *length* bytes from *offset*; blocks. Raise OSError if they aren't there."""
