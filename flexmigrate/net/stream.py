"""The stream transport: Twisted's sockets with a reused receive buffer, and sends without copies.

A protocol that provides :class:`~flexmigrate.net.interfaces.IBufferedProtocol` receives into its
own buffer instead of by ``dataReceived``. Any other protocol, and any connection after
``startTLS``, is served as by Twisted, with two differences: the TLS records of one long write are
sent together, and the producer is paused as soon as any data waits. Descriptors can't be sent over
UNIX sockets, since that uses Twisted's own buffer.

``net.streaming`` makes these transports.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any

from OpenSSL.SSL import RECEIVED_SHUTDOWN
from twisted.internet import main, tcp
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from flexmigrate.net.interfaces import IBufferedProtocol, IGatheringProtocol, IOutlet
from flexmigrate.net.sendable import FileSource
from flexmigrate.net.twisted_private import end_if_asked, has_ended_writing, start_tls

# Bytes of a file that are sent in one turn, so that a client with a fast link and long reads
# doesn't keep others waiting.
SENDFILE_TURN = 4 * 1024 * 1024

# Bytes of TLS records that are received at a time; four times as much as in Twisted.
RECORDS_AT_ONCE = 256 * 1024

# Records of one write that are sent with one call: those of one piece of a file, and of what
# precedes it.
RECORDS_TOGETHER = 24

# Bytes of records after which other connections have their turn, however quickly the client reads.
# Encrypting them takes about a millisecond.
RECORDS_TURN = 1024 * 1024

# Results of receiving that aren't a number of bytes.
_END = 0
_NOTHING = -1
_LOST = -2


class _FilePart:
    """The part of a file that remains to be sent."""

    __slots__ = ("length", "offset", "source")

    def __init__(self, source: FileSource, offset: int, length: int) -> None:
        self.source = source
        self.offset = offset
        self.length = length


if TYPE_CHECKING:
    _Connection = tcp.Connection
else:
    _Connection = object


@implementer(IOutlet)
class StreamTransport(_Connection):
    """A mixin for Twisted's four classes of connections: TCP and UNIX, server and client.

    Data that the socket does not accept at once stays in ``_waiting``, and the registered producer
    is paused until that is empty. This is stricter than Twisted's 64 KiB, and limits the memory
    that a client that doesn't read can take.

    :ivar ended_in_order: valid at the end: the socket was closed, by either side, and not reset.
    """

    ended_in_order = False
    protocol: Any
    producer: Any
    _lost = False
    _fault: str | None = None
    _reading: Any = False  # a bool that changes while requests are served
    _buffered: Any = None  # the protocol, once it is known to have a buffer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._waiting: deque[memoryview | _FilePart] = deque()
        self._records: list[bytes] = []  # of a write that is not complete yet
        self._is_writing = False
        self._turn = 0  # bytes of records sent since other connections had their turn
        super().__init__(*args, **kwargs)

    # Receiving

    @property
    def is_connecting(self) -> bool:
        """Whether the connection isn't established yet. Until then Twisted has replaced these
        methods.
        """
        return "doRead" in vars(self)

    def startReading(self) -> None:
        self._reading = True
        super().startReading()  # type: ignore[no-untyped-call]  # Twisted's

    def stopReading(self) -> None:
        self._reading = False
        super().stopReading()  # type: ignore[no-untyped-call]  # Twisted's

    def doRead(self) -> BaseException | None:  # type: ignore[override]  # Twisted's
        """Receive into the protocol's buffer, once or for as long as the poller asks. Called by the
        reactor when the socket is readable.
        """
        if not self._reading:
            # The reactor saw data here before another connection's turn paused this one.
            return None
        if self._lost:
            return main.CONNECTION_LOST
        protocol = self.protocol
        if protocol is not self._buffered:
            # Looked up once: a protocol doesn't change, except when TLS takes its place.
            if self.TLS:
                return self._read_records(protocol)
            if not IBufferedProtocol.providedBy(protocol):
                return self._read_as_twisted()
            self._buffered = protocol
        poller = protocol.poller
        polling = poller is not None and poller.woken(self)
        size = self._receive()
        while size > 0:
            protocol.buffer_updated(size)
            # Nothing may be received after what was served, or not into that buffer.
            if self._waiting or self.TLS or not self._reading:
                return None
            if not polling or protocol.waits or monotonic() >= poller.turn_ends:
                return None
            size = poller.look(self._receive)
        if size == _NOTHING:
            return None
        return main.CONNECTION_DONE if size == _END else main.CONNECTION_LOST

    def _read_records(self, protocol: Any) -> BaseException | None:
        served = getattr(protocol, "wrappedProtocol", None)
        if not IGatheringProtocol.providedBy(served):
            return self._read_as_twisted()
        served.gather()
        try:
            return self._read_as_twisted()
        finally:
            served.deliver()

    def _read_as_twisted(self) -> BaseException | None:
        why = super().doRead()
        if isinstance(why, ConnectionLost):
            self._lost = True  # the kernel reports it only once
        return why

    def read_ahead(self, most: int) -> int | None:
        """Pass up to *most* bytes, or a little more, to the protocol's ``dataReceived`` although
        reading is paused. Return the number of bytes, or None if the peer's end follows them.
        """
        taken = 0
        while taken < most:
            try:
                data = self.socket.recv(RECORDS_AT_ONCE)
            except BlockingIOError:
                return taken
            except OSError:
                self._lost = True  # the kernel reports it only once
                return None
            if not data:
                return None
            taken += len(data)
            self.protocol.dataReceived(data)
        return taken

    def _receive(self, behind: int = 0) -> int:
        """Receive into the protocol's buffer; return the number of bytes, _END, _NOTHING or _LOST.

        :param behind: the number of bytes in the buffer already.
        """
        if self._lost:
            return _LOST
        try:
            buffer = self.protocol.get_buffer()
            return self.socket.recv_into(buffer[behind:] if behind else buffer)
        except BlockingIOError:
            return _NOTHING
        except OSError:
            self._lost = True  # the kernel reports it only once
            return _LOST

    # Sending

    @property
    def congested(self) -> bool:
        return bool(self._waiting)

    def send(self, data: bytes | bytearray | memoryview, more: bool = False) -> None:
        if not self.connected or self._lost:
            return
        sent = 0
        if not self._waiting:
            try:
                sent = self.socket.send(data, socket.MSG_MORE if more else 0)
            except BlockingIOError:
                pass
            except OSError:
                self._lose()
                return
            if sent == len(data):
                return
        self._wait_for(memoryview(bytes(memoryview(data)[sent:])))

    def send_file(self, source: FileSource, offset: int, length: int) -> None:
        if not self.connected or self._lost:
            return
        if source.fd is None:
            self.send(source.read(offset, length))
            return
        part = _FilePart(source, offset, length)
        if not self._waiting and self._send_part(part):
            return
        if not self._lost:
            self._wait_for(part)

    def write(self, data: bytes) -> None:
        """Send a copy of *data*, as ITransport's ``write``."""
        if self.TLS:
            self._is_writing = True
            try:
                super().write(data)  # type: ignore[no-untyped-call]  # Twisted's
            finally:
                self._is_writing = False
                self._send_records()
        elif data:
            self.send(data)
            if self.producer is not None and not self.streamingProducer:
                # doWrite asks it for more.
                self.startWriting()  # type: ignore[no-untyped-call]  # Twisted's

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """Send copies of several pieces, as ITransport's ``writeSequence``."""
        self.write(b"".join(iovec))

    def startTLS(self, ctx: Any, normal: bool = True) -> None:
        """Start TLS, as ITLSTransport's ``startTLS``; waiting data is sent first, unencrypted."""
        self.bufferSize = RECORDS_AT_ONCE
        start_tls(self, ctx, normal, _BelowTLS)

    def send_record(self, record: bytes) -> None:
        """Send a record that TLS has made: at once, or together with others of the same write."""
        self._records.append(record)
        if not self._is_writing or len(self._records) >= RECORDS_TOGETHER:
            self._send_records()

    def _send_records(self) -> None:
        records, self._records = self._records, []
        if not records or not self.connected or self._lost or has_ended_writing(self):
            return
        sent = 0
        if not self._waiting:
            try:
                sent = self.socket.sendmsg(records)
            except BlockingIOError:
                pass
            except OSError:
                # After TLS's close_notify there is no need to wait for the peer's.
                encrypted: Any = self.getHandle()
                if not encrypted.get_shutdown() & RECEIVED_SHUTDOWN:
                    self._lose()
                return
        self._turn += sent
        for record in records:
            if sent < len(record):
                self._waiting.append(memoryview(record)[sent:])
            sent = max(sent - len(record), 0)
        if self._waiting or self._turn >= RECORDS_TURN:
            self._pause_producer()

    def doWrite(self) -> BaseException | None:  # type: ignore[override]  # Twisted's
        """Send waiting data. Called by the reactor when the socket is writable."""
        self._turn = 0
        if self._lost or not self._send_waiting():
            return main.CONNECTION_LOST if self._lost else None
        self.stopWriting()  # type: ignore[no-untyped-call]  # Twisted's
        # The following, in this order, is the same as in abstract.FileDescriptor.
        if self.producer is not None and (self.producerPaused or not self.streamingProducer):
            self.producerPaused = False
            self.producer.resumeProducing()
            if self.TLS and self.disconnecting:
                # TLS has ended and won't write any more: close in the next turn.
                self.startWriting()  # type: ignore[no-untyped-call]  # Twisted's
            return None
        return end_if_asked(self)

    def _send_waiting(self) -> bool:
        """Send waiting data; return whether all of it was sent."""
        while self._waiting:
            piece = self._waiting[0]
            if isinstance(piece, _FilePart):
                if not self._send_part(piece):
                    return False
            else:
                try:
                    sent = self.socket.send(piece)
                except BlockingIOError:
                    return False
                except OSError:
                    self._lose()
                    return False
                if sent < len(piece):
                    self._waiting[0] = piece[sent:]
                    return False
            self._waiting.popleft()
        return True

    def _send_part(self, part: _FilePart) -> bool:
        """Send from a file until it is done (True), the socket is full, or the turn is over."""
        turn = SENDFILE_TURN
        fd: Any = part.source.fd
        while part.length and turn > 0:
            try:
                sent = os.sendfile(self.socket.fileno(), fd, part.offset, min(part.length, turn))
            except BlockingIOError:
                return False
            except OSError as error:
                # The header has announced these bytes, so the only way out is to end the
                # connection.
                self._cannot_send(part, error)
                return False
            if not sent:
                self._cannot_send(part, None)
                return False
            part.offset += sent
            part.length -= sent
            turn -= sent
        return not part.length

    def _cannot_send(self, part: _FilePart, error: OSError | None) -> None:
        """End the connection, with the file's error as the reason if reading the file failed.
        sendfile(2) doesn't tell which side failed.
        """
        try:
            part.source.read(part.offset, 1)
        except OSError as fault:
            self._fault = f"this side could not read what it was to send: {fault.strerror}"
            self._log().error("{fault}", fault=self._fault)
        else:
            self._log().info(
                "cannot send a file: {error}", error=error or "it is shorter than announced"
            )
        self._lose()

    def _log(self) -> Logger:
        return Logger(source=self.protocol)

    def _wait_for(self, piece: memoryview | _FilePart) -> None:
        self._waiting.append(piece)
        self._pause_producer()

    def _pause_producer(self) -> None:
        """Pause the producer until ``doWrite`` has sent what waits."""
        self.startWriting()  # type: ignore[no-untyped-call]  # Twisted's
        if self.producer is not None and self.streamingProducer and not self.producerPaused:
            self.producerPaused = True
            self.producer.pauseProducing()

    def finish(self) -> None:
        self.unregisterProducer()  # type: ignore[no-untyped-call]  # Twisted's
        self.loseConnection()  # type: ignore[no-untyped-call]  # Twisted's

    def abortConnection(self) -> None:
        """Abort, as ITCPTransport's ``abortConnection``; waiting data and image references are
        dropped.
        """
        self._lost = True
        self._waiting.clear()
        super().abortConnection()  # type: ignore[no-untyped-call]  # Twisted's

    def _lose(self) -> None:
        """End the connection in the reactor's next turn: a caller that is sending must not be
        re-entered.
        """
        self._lost = True
        self._waiting.clear()
        self.startWriting()  # type: ignore[no-untyped-call]  # Twisted's

    def connectionLost(self, reason: Any) -> None:
        """Finish the connection, as in Twisted's Connection; references to images are dropped."""
        is_told = self._lost or not self.connected  # about the loss, or a second time
        if not is_told and reason.check(ConnectionLost) and self._is_at_end():
            # The reactor noticed the peer's end of a UNIX socket while it waited to write; it
            # doesn't know that we are reading, too.
            reason = Failure(main.CONNECTION_DONE)
        if self._fault is not None:
            reason = Failure(ConnectionLost(self._fault))
        self.ended_in_order = reason.check(ConnectionDone) is not None
        self._waiting.clear()
        self._records.clear()
        super().connectionLost(reason)

    def _is_at_end(self) -> bool:
        """Return whether the peer has ended the connection and received everything. Valid only if
        the kernel has reported no error, which it does once.
        """
        try:
            return not self._waiting and not self.socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return False


class _BelowTLS(FileDescriptor):
    """The methods that TLS calls on the connection below it. The connection's own are above TLS."""

    def write(self, data: bytes) -> None:
        below: Any = self  # the connection: Twisted passes it as self
        below.send_record(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        below: Any = self
        below.send_record(b"".join(iovec))
