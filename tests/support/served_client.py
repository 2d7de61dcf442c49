"""Our client on a transport in memory, after a real negotiation; the test is the server then."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from flexmigrate.client.connection import NBDClientProtocol
from flexmigrate.wire.agreement import ExportInfo, Ready, Send
from flexmigrate.wire.client_handshake import ClientOptions
from flexmigrate.wire.constants import TransmissionFlag
from flexmigrate.wire.handshake import HandshakeStyle, ServerHandshake

ALL_FLAGS = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_CACHE
    | TransmissionFlag.SEND_FAST_ZERO
)

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)


class Request(NamedTuple):
    """A request as it came in."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    payload: bytes


class OneExport:
    """A directory with one export, known by every name."""

    def __init__(self, export: ExportInfo) -> None:
        self.export = export

    def find(self, name: str) -> ExportInfo | None:
        return self.export

    def names(self) -> Iterable[tuple[str, str]]:
        return [(self.export.name, "")]

    def listable(self) -> bool:
        return True


class ServedClient:
    """A client that takes requests, and what it sends.

    :ivar client: the protocol.
    :ivar clock: what it looks at.
    """

    def __init__(
        self,
        *,
        size: int = 1 << 40,
        flags: TransmissionFlag = ALL_FLAGS,
        wish: ClientOptions | None = None,
        oldstyle: bool = False,
        strict: bool = True,
        transport: Any = None,
        **export: Any,
    ) -> None:
        style = HandshakeStyle.OLDSTYLE if oldstyle else HandshakeStyle.FIXED_NEWSTYLE
        directory = OneExport(ExportInfo("", size, flags, **export))
        self.clock = Clock()
        self.client = NBDClientProtocol(wish or ClientOptions(), self.clock, strict=strict)
        self.transport = transport or StringTransport()
        connecting: Any = self.client  # this method of Twisted's has no types
        connecting.makeConnection(self.transport)
        self._negotiate(ServerHandshake(directory, style=style))
        self.client.ready.addErrback(lambda failure: None)
        self.extended = self.client.agreement.extended

    def _negotiate(self, server: ServerHandshake) -> None:
        events = server.greeting()
        while events:
            for event in events:
                if isinstance(event, Send):
                    self.client.dataReceived(event.data)
            if any(isinstance(event, Ready) for event in events):
                break
            sent = self.transport.value()
            self.transport.clear()
            events = server.receive(sent)
        assert self.client.ready.called

    def requests(self) -> list[Request]:
        """Return the requests that were sent since the last call."""
        sent = self.transport.value()
        self.transport.clear()
        found = []
        while sent:
            head = struct.Struct(">IHHQQQ" if self.extended else ">IHHQQI")
            magic, flags, command, cookie, offset, length = head.unpack_from(sent)
            assert magic == (0x21E41C71 if self.extended else 0x25609513)
            carries = flags & 32 if self.extended else command == WRITE
            end = head.size + (length if carries else 0)
            assert len(sent) >= end, "half a request"
            found.append(Request(flags, command, cookie, offset, length, sent[head.size : end]))
            sent = sent[end:]
        return found

    def request(self) -> Request:
        """Return the one request that was sent since the last call."""
        (request,) = self.requests()
        return request

    def ok(self, request: Request) -> None:
        """Answer that all went well, without data."""
        self.error(request, 0)

    def error(self, request: Request, number: int) -> None:
        """Answer with an error number."""
        if not self.extended:
            self.reply(struct.pack(">IIQ", 0x67446698, number, request.cookie))
        elif number:
            self.chunk(request, 0x8001, struct.pack(">IH", number, 0))
        else:
            self.chunk(request, 0, b"")

    def chunk(self, request: Request, kind: int, payload: bytes, flags: int = 1) -> None:
        """Answer with a chunk of the style that was negotiated."""
        if self.extended:
            head = struct.pack(
                ">IHHQQQ",
                0x6E8A278C,
                flags,
                kind,
                request.cookie,
                request.offset,
                len(payload),
            )
        else:
            head = struct.pack(">IHHQI", 0x668E33EF, flags, kind, request.cookie, len(payload))
        self.reply(head + payload)

    def data(self, request: Request, data: bytes) -> None:
        """Answer a read."""
        if self.client.agreement.structured:
            self.chunk(request, 1, struct.pack(">Q", request.offset) + data)
        else:
            self.reply(struct.pack(">IIQ", 0x67446698, 0, request.cookie) + data)

    def reply(self, data: bytes) -> None:
        """Send the client any bytes."""
        self.client.dataReceived(data)

    def lose(self, reason: BaseException | None = None) -> None:
        """End the connection: cleanly, or for *reason*."""
        self.client.connectionLost(Failure(reason or ConnectionDone()))
