"""NBD by hand over a blocking socket: for peers that misbehave, and checks that must not trust us.

It shares no code with flexmigrate, on purpose: a number or a layout that we have wrong would be
wrong on both sides, and no test would see it. All numbers are from the NBD project's doc/proto.md.
It knows simple replies only, does one thing after the other, and raises `Ended` or
`ProtocolViolation`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
import struct
from typing import NamedTuple

INIT_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OLDSTYLE_MAGIC = 0x00420281861253
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698

READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
FUA, NO_HOLE = 1, 2
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1, 2, 4, 8
SEND_TRIM, SEND_WRITE_ZEROES = 32, 64

FIXED_NEWSTYLE, NO_ZEROES = 1, 2
OPT_EXPORT_NAME, OPT_ABORT, OPT_GO = 1, 2, 7
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, 0x80000001
INFO_EXPORT = 0

EINVAL, ENOSPC, EIO = errno.EINVAL, errno.ENOSPC, errno.EIO

REQUEST = struct.Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
REPLY = struct.Struct(">IIQ")  # magic, error, cookie
OPTION = struct.Struct(">8sII")  # magic, option, length
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length


class Ended(Exception):
    """The peer ended the connection where bytes were due."""


class ProtocolViolation(Exception):
    """The peer sent what the specification does not allow here."""


class Reply(NamedTuple):
    """A simple reply's head; an error of 0 is success."""

    error: int
    cookie: int


def receive(sock: socket.socket, length: int) -> bytes:
    """Return exactly *length* bytes.

    :raises Ended: if the connection ends first, in whatever way
    :raises TimeoutError: if they do not come in the time that the socket allows
    """
    got = bytearray()
    while len(got) < length:
        try:
            piece = sock.recv(length - len(got))
        except ConnectionError as error:
            raise Ended(f"{error} after {len(got)} of {length} bytes") from error
        if not piece:
            raise Ended(f"end after {len(got)} of {length} bytes")
        got += piece
    return bytes(got)


def request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """Return a request's 28 bytes; nothing is checked."""
    return REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)


def connect(address: str, port: int, bind: str | None = None, timeout: float = 30) -> socket.socket:
    """Connect to an address (a path beginning with `/`: a UNIX socket, and no port matters).

    :param bind: address to connect from
    :param timeout: seconds that this and each later wait on the socket may take
    """
    if address.startswith("/"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock
    source = (bind, 0) if bind is not None else None
    sock = socket.create_connection((address, port), timeout, source)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class RawClient:
    """A client over a connected socket. `hello` first; then requests.

    :ivar size: bytes in the export, once hello has been said
    :ivar flags: its transmission flags
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.size = 0
        self.flags = 0
        self._cookies = itertools.count(1)

    @classmethod
    def to(
        cls,
        address: str,
        port: int,
        *,
        export: str = "",
        bind: str | None = None,
        timeout: float = 30,
    ) -> RawClient:
        """Connect and negotiate."""
        client = cls(connect(address, port, bind, timeout))
        try:
            client.hello(export)
        except BaseException:
            client.close()
            raise
        return client

    def hello(self, export: str = "") -> None:
        """Read the server's greeting, in either style, and come to transmission."""
        magic, style = struct.unpack(">8s8s", receive(self.sock, 16))
        if magic != INIT_MAGIC:
            raise ProtocolViolation(f"greeting begins with {magic!r}")
        if style == OPTION_MAGIC:
            self._newstyle(export)
        elif int.from_bytes(style, "big") == OLDSTYLE_MAGIC:
            # The oldstyle's flags are 32 bits wide: 16 for the handshake, then the transmission's.
            self.size, _, self.flags, _ = struct.unpack(">QHH124s", receive(self.sock, 136))
        else:
            raise ProtocolViolation(f"neither style of greeting: {style!r}")

    def _newstyle(self, export: str) -> None:
        (server_flags,) = struct.unpack(">H", receive(self.sock, 2))
        self.sock.sendall(struct.pack(">I", server_flags & (FIXED_NEWSTYLE | NO_ZEROES)))
        name = export.encode()
        replies = self.option(OPT_GO, struct.pack(">I", len(name)) + name + struct.pack(">H", 0))
        for kind, data in replies:
            if kind == REP_INFO and data[:2] == struct.pack(">H", INFO_EXPORT):
                self.size, self.flags = struct.unpack(">QH", data[2:])
        if replies[-1][0] != REP_ACK:
            kind, text = replies[-1]
            raise ProtocolViolation(f"GO was answered {kind:#x} {text!r}")

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send one option; return its replies, (type, data); the last is an ACK or an error."""
        self.sock.sendall(OPTION.pack(OPTION_MAGIC, option, len(data)) + data)
        replies: list[tuple[int, bytes]] = []
        while not replies or (replies[-1][0] != REP_ACK and replies[-1][0] < 1 << 31):
            magic, answered, kind, length = OPTION_REPLY.unpack(receive(self.sock, 20))
            if magic != OPTION_REPLY_MAGIC or answered != option:
                raise ProtocolViolation(f"option {option} got magic {magic:#x}, option {answered}")
            replies.append((kind, receive(self.sock, length)))
        return replies

    def next_cookie(self) -> int:
        """Return a cookie that no request of this connection has had."""
        return next(self._cookies)

    def send(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes = b"",
        *,
        flags: int = 0,
        cookie: int | None = None,
    ) -> int:
        """Send a request, with what follows it; return its cookie."""
        if cookie is None:
            cookie = self.next_cookie()
        self.sock.sendall(request(command, cookie, offset, length, flags) + payload)
        return cookie

    def reply(self) -> Reply:
        """Read the head of one simple reply."""
        magic, error, cookie = REPLY.unpack(receive(self.sock, REPLY.size))
        if magic != REPLY_MAGIC:
            raise ProtocolViolation(f"a reply begins with {magic:#010x}")
        return Reply(error, cookie)

    def call(self, command: int, offset: int = 0, length: int = 0, payload: bytes = b"") -> int:
        """Send a request that is answered without data; return the reply's error."""
        cookie = self.send(command, offset, length, payload)
        reply = self.reply()
        if reply.cookie != cookie:
            raise ProtocolViolation(f"cookie {reply.cookie} for the request {cookie}")
        return reply.error

    def write(self, offset: int, data: bytes) -> int:
        """Write *data*; return the reply's error."""
        return self.call(WRITE, offset, len(data), data)

    def flush(self) -> int:
        """Flush; return the reply's error."""
        return self.call(FLUSH)

    def read(self, offset: int, length: int) -> bytes:
        """Read *length* bytes.

        :raises ProtocolViolation: if the server answers with an error, too
        """
        if error := self.call(READ, offset, length):
            raise ProtocolViolation(f"read of {length} at {offset}: error {error}")
        return receive(self.sock, length)

    def say_goodbye(self) -> None:
        """Send DISC, and wait for the server to end the connection."""
        self.send(DISC)
        self.expect_end()
        self.close()

    def expect_end(self) -> None:
        """Wait for the server to end the connection, in whatever way, without another byte."""
        expect_end(self.sock)

    def end_of_the_conversation(self) -> None:
        """Drop whatever the server still says, until it ends the connection, in whatever way."""
        with contextlib.suppress(Ended):
            while receive(self.sock, 1):
                pass

    def close(self) -> None:
        """Close the socket, without DISC."""
        self.sock.close()


def expect_end(sock: socket.socket) -> None:
    """Wait for the peer to end the connection, in whatever way, without another byte.

    :raises ProtocolViolation: if a byte comes
    :raises TimeoutError: if nothing comes in the time that the socket allows
    """
    with contextlib.suppress(Ended):
        byte = receive(sock, 1)
        raise ProtocolViolation(f"{byte!r} where the connection was to end")
