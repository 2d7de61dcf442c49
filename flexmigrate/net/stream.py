"""The stream transport: Twisted's own sockets with a receive buffer that is reused and sends that
don't copy.

A protocol that provides :class:`~flexmigrate.net.interfaces.IBufferedProtocol` is fed through its
own buffer instead of ``dataReceived``; any other protocol, and any connection after ``startTLS``,
is served just as Twisted does, except that what TLS makes of one long write is sent together, and
that a producer is paused as soon as anything waits. (But for descriptors sent over a UNIX socket:
they go with Twisted's own buffer, which isn't used here.)

Who makes them: ``net.streaming``.
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

# At most so much of one file is sent in one go, so that a client with a fast link and long reads
# lets the others have their turn.
SENDFILE_TURN = 4 * 1024 * 1024

# Bytes of TLS records that are received at a time; Twisted's own 64 KiB are four of them.
RECORDS_AT_ONCE = 256 * 1024

# Of the records that one write makes, so many are sent with one call: what an outlet reads from a
# file at a time, and what goes before it.
RECORDS_TOGETHER = 24

# After so many bytes of records others have their turn, however quickly a client reads: to encrypt
# them takes about a millisecond.
RECORDS_TURN = 1024 * 1024

# What receiving comes to, where it isn't a number of bytes.
_END = 0
_NOTHING = -1
_LOST = -2


class _FilePart:
    """What remains to be sent of a stretch of a file."""

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
    """Mixed into the four classes of Twisted's connections, TCP and UNIX, server and client.

    What the socket does not take at once stands in ``_waiting``, and the registered producer is
    paused until that is empty: this is stricter than Twisted's own 64 KiB, and bounds what a
    client that doesn't read can make us hold.

    :ivar ended_in_order: once it is over: the socket was closed, by either side, and not reset.
    """

    ended_in_order = False
    protocol: Any
    producer: Any
    _lost = False
    _fault: str | None = None
    _reading: Any = False  # a bool, which changes while we serve
    _buffered: Any = None  # the protocol, once it is known to have a buffer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._waiting: deque[memoryview | _FilePart] = deque()
        self._records: list[bytes] = []  # made by a write that isn't over
        self._is_writing = False
        self._turn = 0  # bytes of records that were sent since others had theirs
        super().__init__(*args, **kwargs)

    # Receiving

    @property
    def is_connecting(self) -> bool:
        """Whether the connection doesn't stand yet: Twisted has put others in these methods' place
        until then.
        """
        return "doRead" in vars(self)

    def startReading(self) -> None:
        self._reading = True
        super().startReading()  # type: ignore[no-untyped-call]  # Twisted's

    def stopReading(self) -> None:
        self._reading = False
        super().stopReading()  # type: ignore[no-untyped-call]  # Twisted's

    def doRead(self) -> BaseException | None:  # type: ignore[override]  # Twisted's
        """Receive into the protocol's buffer: what the reactor calls when there is something.

        Once, or again for as long as the poller finds that worthwhile.
        """
        if not self._reading:
            # The reactor had seen that there is something before another connection's turn brought
            # this one to a stop.
            return None
        if self._lost:
            return main.CONNECTION_LOST
        protocol = self.protocol
        if protocol is not self._buffered:
            # Asked once: a protocol doesn't change, but with TLS another one takes its place.
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
            # Nothing more may be received behind what was served, or not into that buffer.
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
            self._lost = True  # the kernel tells it once
        return why

    def read_ahead(self, most: int) -> int | None:
        """Hand what there is to be read to the protocol's ``dataReceived``, up to *most* bytes or a
        little more, though reading is paused; return how much it was, or None if the other side's
        end stands behind it.
        """
        taken = 0
        while taken < most:
            try:
                data = self.socket.recv(RECORDS_AT_ONCE)
            except BlockingIOError:
                return taken
            except OSError:
                self._lost = True  # the kernel tells it once
                return None
            if not data:
                return None
            taken += len(data)
            self.protocol.dataReceived(data)
        return taken

    def _receive(self, behind: int = 0) -> int:
        """Receive into the protocol's buffer; return how much, or one of three other things.

        :param behind: how many bytes were received there before.
        """
        if self._lost:
            return _LOST
        try:
            buffer = self.protocol.get_buffer()
            return self.socket.recv_into(buffer[behind:] if behind else buffer)
        except BlockingIOError:
            return _NOTHING
        except OSError:
            self._lost = True  # the kernel tells it once
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
        """As ITransport has it."""
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
                # It is asked for more by doWrite.
                self.startWriting()  # type: ignore[no-untyped-call]  # Twisted's

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        """As ITransport has it."""
        self.write(b"".join(iovec))

    def startTLS(self, ctx: Any, normal: bool = True) -> None:
        """As ITLSTransport has it; what still waits goes out first, in the clear."""
        self.bufferSize = RECORDS_AT_ONCE
        start_tls(self, ctx, normal, _BelowTLS)

    def send_record(self, record: bytes) -> None:
        """Send what TLS has made: at once, or with the others that the same write makes."""
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
                # Who has said goodbye need not wait for our answer to that.
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
        """Send what waits: what the reactor calls when the socket takes more."""
        self._turn = 0
        if self._lost or not self._send_waiting():
            return main.CONNECTION_LOST if self._lost else None
        self.stopWriting()  # type: ignore[no-untyped-call]  # Twisted's
        # What follows, and its order, are as in abstract.FileDescriptor.
        if self.producer is not None and (self.producerPaused or not self.streamingProducer):
            self.producerPaused = False
            self.producer.resumeProducing()
            if self.TLS and self.disconnecting:
                # TLS is over, so that it has nothing more to write: close in the next turn.
                self.startWriting()  # type: ignore[no-untyped-call]  # Twisted's
            return None
        return end_if_asked(self)

    def _send_waiting(self) -> bool:
        """Return whether all that waited was sent."""
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
        """Send from a file until it's done (True), the socket is full, or others should have a
        turn.
        """
        turn = SENDFILE_TURN
        fd: Any = part.source.fd
        while part.length and turn > 0:
            try:
                sent = os.sendfile(self.socket.fileno(), fd, part.offset, min(part.length, turn))
            except BlockingIOError:
                return False
            except OSError as error:
                # The header has promised these bytes: only ending the connection can take that
                # back.
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
        """End the connection, and find out whether it was the file's fault, which sendfile(2)
        doesn't tell: then that is the reason for the connection's end.
        """
        try:
            part.source.read(part.offset, 1)
        except OSError as fault:
            self._fault = f"this side could not read what it was to send: {fault.strerror}"
            self._log().error("{fault}", fault=self._fault)
        else:
            self._log().info("sending a file failed: {error}", error=error or "it had ended")
        self._lose()

    def _log(self) -> Logger:
        return Logger(source=self.protocol)

    def _wait_for(self, piece: memoryview | _FilePart) -> None:
        self._waiting.append(piece)
        self._pause_producer()

    def _pause_producer(self) -> None:
        """Have ``doWrite`` called, which lets it go on."""
        self.startWriting()  # type: ignore[no-untyped-call]  # Twisted's
        if self.producer is not None and self.streamingProducer and not self.producerPaused:
            self.producerPaused = True
            self.producer.pauseProducing()

    def finish(self) -> None:
        self.unregisterProducer()  # type: ignore[no-untyped-call]  # Twisted's
        self.loseConnection()  # type: ignore[no-untyped-call]  # Twisted's

    def abortConnection(self) -> None:
        """As ITCPTransport has it; nothing more is sent, and references to images are dropped."""
        self._lost = True
        self._waiting.clear()
        super().abortConnection()  # type: ignore[no-untyped-call]  # Twisted's

    def _lose(self) -> None:
        """End the connection from the reactor's next turn: whoever is sending must not be
        re-entered.
        """
        self._lost = True
        self._waiting.clear()
        self.startWriting()  # type: ignore[no-untyped-call]  # Twisted's

    def connectionLost(self, reason: Any) -> None:
        """As Twisted's Connection has it; references to images are dropped."""
        is_told = self._lost or not self.connected  # of a loss, or for the second time
        if not is_told and reason.check(ConnectionLost) and self._is_at_end():
            # The reactor was to write, was told that the other side has closed its UNIX socket, and
            # doesn't know that we read from it, too.
            reason = Failure(main.CONNECTION_DONE)
        if self._fault is not None:
            reason = Failure(ConnectionLost(self._fault))
        self.ended_in_order = reason.check(ConnectionDone) is not None
        self._waiting.clear()
        self._records.clear()
        super().connectionLost(reason)

    def _is_at_end(self) -> bool:
        """Whether the other side has ended, and took all that was sent; to be asked only where the
        kernel has told of no error, which it does once.
        """
        try:
            return not self._waiting and not self.socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return False


class _BelowTLS(FileDescriptor):
    """What TLS finds below itself instead of the connection's own methods, which are above it."""

    def write(self, data: bytes) -> None:
        below: Any = self  # the connection, as Twisted calls this
        below.send_record(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        below: Any = self
        below.send_record(b"".join(iovec))
