"""One way to send over any kind of transport: a stream transport, or Twisted's ``write`` (as with
TLS, in tests, or in other programs).

A protocol calls :func:`outlet_for` once it is connected, registers as the producer there, and sends
through the result without knowing which kind it is.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from zope.interface import implementer

from flexmigrate.net.interfaces import IOutlet
from flexmigrate.net.sendable import FileSource

# A file is sent in pieces of this size, so that a long read holds no more than one of them beside
# the transport's own buffer. Sixteen TLS records.
PIECE = 256 * 1024


@implementer(IOutlet, IPushProducer)
class PlainOutlet:
    """An outlet that uses ``transport.write``, which copies. Files are read piece by piece, as the
    transport drains.

    It is the transport's producer, and passes pauses on to the protocol's producer.
    """

    def __init__(self, transport: Any, producer: Any) -> None:
        self._transport = transport
        self._producer = producer
        self._log = Logger(source=producer)
        self._waiting: deque[bytes | tuple[FileSource, int, int]] = deque()
        self._paused = False
        self._gone = False
        self._finishing = False
        transport.registerProducer(self, True)

    @property
    def congested(self) -> bool:
        return self._paused or bool(self._waiting)

    def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> None:
        if self._gone or self._finishing:
            return
        if self.congested:
            self._waiting.append(bytes(data))
        else:
            self._transport.write(bytes(data))

    def send_file(self, source: FileSource, offset: int, length: int) -> None:
        if self._gone or self._finishing:
            return
        self._waiting.append((source, offset, length))
        self._pump()

    def finish(self) -> None:
        self._finishing = True
        self._close_if_drained()

    def pauseProducing(self) -> None:
        """Stop sending: the transport's buffer is full."""
        if not self._paused:
            self._paused = True
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        """Send waiting data, and when all of it is sent resume the protocol's producer."""
        self._paused = False
        self._pump()
        if self._finishing:
            self._close_if_drained()
        elif not self.congested and not self._gone:
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """Drop waiting data: the connection is gone."""
        self._gone = True
        self._waiting.clear()

    def _close_if_drained(self) -> None:
        if not self.congested and not self._gone:
            # A transport doesn't close while it has a producer.
            self._transport.unregisterProducer()
            self._transport.loseConnection()

    def _pump(self) -> None:
        while self._waiting and not self._paused and not self._gone:
            piece = self._waiting.popleft()
            if isinstance(piece, bytes):
                self._transport.write(piece)
                continue
            source, offset, length = piece
            size = min(length, PIECE)
            if length > size:
                self._waiting.appendleft((source, offset + size, length - size))
            try:
                data = source.read(offset, size)
            except OSError as error:
                # The header has announced these bytes, so the only way out is to end the
                # connection.
                self._log.error("cannot read the image to send it: {error}", error=error)
                self.stopProducing()
                self._transport.abortConnection()
                return
            self._transport.write(bytes(data))


def outlet_for(transport: Any, producer: Any) -> Any:
    """Return an IOutlet for *transport*; *producer* (IPushProducer) is paused while it is
    congested.
    """
    stream: Any = transport
    if IOutlet.providedBy(transport) and not stream.TLS:
        stream.registerProducer(producer, True)
        return stream
    return PlainOutlet(transport, producer)
