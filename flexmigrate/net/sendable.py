"""Sources of bytes that a stream transport can send."""

from __future__ import annotations

from typing import Protocol


class FileSource(Protocol):
    """What is sent to a peer (``net.stream``): an open file that is read at offsets, or bytes
    that were read.
    """

    @property
    def fd(self) -> int | None:
        """The descriptor; None where the bytes are in memory, and ``read`` only shows them."""

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return *length* bytes from *offset*, blocking; raise OSError where they aren't there."""
