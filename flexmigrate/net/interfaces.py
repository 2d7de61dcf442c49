"""Interfaces of our protocols and transports, beyond Twisted's own."""

from __future__ import annotations

from typing import Any

from zope.interface import Attribute, Interface

from flexmigrate.net.sendable import FileSource


class IBufferedProtocol(Interface):
    """A protocol that provides its own receive buffer, as ``asyncio.BufferedProtocol`` does."""

    poller = Attribute("Poller | None: whether to poll for more before sleeping (net.polling).")
    waits = Attribute("bool: it waits for another event of the reactor, so polling is useless.")

    def get_buffer() -> memoryview:
        """Return the buffer for the next bytes; never empty, valid until `buffer_updated`."""

    def buffer_updated(size: int) -> None:  # noqa: N805
        """Take *size* bytes (at least 1) at the beginning of that buffer."""


class IGatheringProtocol(Interface):
    """A protocol that prefers large pieces to one ``dataReceived`` per TLS record (16 KiB)."""

    def gather() -> None:
        """Collect the data of each ``dataReceived`` from now on."""

    def deliver() -> None:
        """Process the collected data: there is no more for now."""


class IOutlet(Interface):
    """An outlet to send through: in order, and without copies if the transport allows it."""

    congested = Attribute("bool: data waits for the peer to read; the producer is paused.")

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
        """Close the connection once everything sent has left. Nothing more may be sent, and the
        producer isn't called any more.
        """
