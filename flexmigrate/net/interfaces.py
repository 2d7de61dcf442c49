"""What protocols and transports of ours have beyond Twisted's interfaces."""

from __future__ import annotations

from typing import Any

from zope.interface import Attribute, Interface

from flexmigrate.net.sendable import FileSource


class IBufferedProtocol(Interface):
    """A protocol that provides its own receive buffer, as ``asyncio.BufferedProtocol`` does."""

    poller = Attribute("Poller | None: whether to look for more before sleeping (net.polling).")
    waits = Attribute("bool: it waits for something that the reactor brings: don't look for more.")

    def get_buffer() -> memoryview:
        """Return where to put what is received next; never empty, valid until `buffer_updated`."""

    def buffer_updated(size: int) -> None:  # noqa: N805
        """*size* bytes (at least 1) now stand at the beginning of that buffer."""


class IGatheringProtocol(Interface):
    """A protocol that would rather have much at once than each TLS record, 16 KiB, by itself."""

    def gather() -> None:
        """Keep what ``dataReceived`` brings from now on."""

    def deliver() -> None:
        """That was all for now."""


class IOutlet(Interface):
    """Where a protocol sends to: in order, without copies where the transport can do without."""

    congested = Attribute("bool: something waits until the peer reads; the producer is paused.")

    def send(data: Any, more: bool = False) -> None:  # noqa: N805
        """Send a bytes-like object; it may be reused as soon as this returns.

        :param more: other data follows at once, so a small packet needn't leave yet (MSG_MORE,
            send(2)).
        """

    def send_file(
        source: FileSource,  # noqa: N805
        offset: int,
        length: int,
    ) -> None:
        """Send *length* bytes of *source* from *offset*. A file that is shorter ends the
        connection.
        """

    def finish() -> None:
        """Send no more, and close the connection once all that was sent has left; the producer is
        not told of anything any more.
        """
