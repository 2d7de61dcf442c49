"""The server's side of NBD by hand, for the misbehaving destinations in tests/peers/destinations.

A destination commits its fault on the first connection that it gets, and after that is a faithful
destination, so that a test can see the source try again; with `--always` it commits it on each. It
says on standard output what happens: `listening on …`, `connection N`, what the fault was, and
`complete` when the source said DISC.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from support import raw_nbd
from support.raw_nbd import DISC, FLUSH, READ, TRIM, WRITE, WRITE_ZEROES, receive

FLAGS = (
    raw_nbd.HAS_FLAGS
    | raw_nbd.SEND_FLUSH
    | raw_nbd.SEND_FUA
    | raw_nbd.SEND_TRIM
    | raw_nbd.SEND_WRITE_ZEROES
)


class Request(NamedTuple):
    """A request's head, its magic checked."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class Sender:
    """One connection from a source, and the image that it is to fill."""

    def __init__(self, sock: socket.socket, image: Path, style: str) -> None:
        self.sock = sock
        self.image = image
        self.size = image.stat().st_size
        self.style = style

    def say_hello(self, *, size: int | None = None) -> None:
        """Greet and come to transmission; another *size* than the image's can be claimed."""
        offered = self.size if size is None else size
        self.sock.sendall(self._greeting(offered))
        if self.style == "oldstyle":
            return
        receive(self.sock, 4)  # the client's flags
        while (option := self._option()) != raw_nbd.OPT_GO:
            self._answer(option, raw_nbd.REP_ERR_UNSUP)
        export = struct.pack(">HQH", raw_nbd.INFO_EXPORT, offered, FLAGS)
        self._answer(raw_nbd.OPT_GO, raw_nbd.REP_INFO, export)
        self._answer(raw_nbd.OPT_GO, raw_nbd.REP_ACK)

    def say_hello_badly(self, magic: bytes) -> None:
        """Send a greeting that is right but for the *magic* that it begins with."""
        self.sock.sendall(magic + self._greeting(self.size)[len(magic) :])

    def _greeting(self, size: int) -> bytes:
        if self.style == "oldstyle":
            style = raw_nbd.OLDSTYLE_MAGIC
            return struct.pack(">8sQQHH124x", raw_nbd.INIT_MAGIC, style, size, 0, FLAGS)
        flags = struct.pack(">H", raw_nbd.FIXED_NEWSTYLE)
        return raw_nbd.INIT_MAGIC + raw_nbd.OPTION_MAGIC + flags

    def _option(self) -> int:
        magic, option, length = raw_nbd.OPTION.unpack(receive(self.sock, 16))
        if magic != raw_nbd.OPTION_MAGIC:
            raise raw_nbd.ProtocolViolation(f"an option begins with {magic!r}")
        receive(self.sock, length)
        return int(option)

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        head = raw_nbd.OPTION_REPLY.pack(raw_nbd.OPTION_REPLY_MAGIC, option, kind, len(data))
        self.sock.sendall(head + data)

    def request(self) -> Request:
        """Read the head of the next request; a payload, if it has one, is still to be read."""
        magic, *fields = raw_nbd.REQUEST.unpack(receive(self.sock, raw_nbd.REQUEST.size))
        if magic != raw_nbd.REQUEST_MAGIC:
            raise raw_nbd.ProtocolViolation(f"a request begins with {magic:#010x}")
        return Request(*fields)

    def obey(self, request: Request) -> bytes:
        """Read the payload, do to the image what was asked for; return what a READ wants."""
        with self.image.open("r+b") as image:
            image.seek(request.offset)
            if request.command == READ:
                return image.read(request.length)
            if request.command == WRITE:
                image.write(receive(self.sock, request.length))
            elif request.command in (TRIM, WRITE_ZEROES):
                image.write(bytes(request.length))
            elif request.command != FLUSH:
                raise raw_nbd.ProtocolViolation(f"not to be expected: {request}")
        return b""

    def answer(
        self,
        request: Request,
        data: bytes = b"",
        *,
        error: int = 0,
        magic: int = raw_nbd.REPLY_MAGIC,
        off_by: int = 0,
    ) -> None:
        """Send a simple reply; its magic can be made wrong, and its cookie *off_by* some."""
        cookie = (request.cookie + off_by) % (1 << 64)
        self.sock.sendall(raw_nbd.REPLY.pack(magic, error, cookie) + data)

    def first_write(self) -> Request:
        """Serve what comes until a WRITE; return that one, payload unread, unanswered."""
        while (request := self.request()).command != WRITE:
            self.answer(request, self.obey(request))
        return request

    def serve_until_disc(self) -> None:
        """Be a faithful destination."""
        while (request := self.request()).command != DISC:
            self.answer(request, self.obey(request))

    def wait_for_end(self) -> None:
        """Read and drop whatever still comes, until the source ends the connection."""
        self.sock.settimeout(None)
        with contextlib.suppress(ConnectionError):
            while self.sock.recv(1 << 16):
                pass
        print("the source ended the connection", flush=True)

    def close(self) -> None:
        """End the connection here."""
        self.sock.close()


Fault = Callable[[Sender, argparse.Namespace], None]


def arguments(description: str | None, *more: str) -> argparse.Namespace:
    """Read a destination's command line: ADDRESS PORT IMAGE, what else it needs, and its style."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("address")
    parser.add_argument("port", type=int, help="0: any that is free")
    parser.add_argument("image", type=Path, help="is filled; its size is what is offered")
    for name in more:
        parser.add_argument(name)
    parser.add_argument("--style", choices=("oldstyle", "newstyle"), default="oldstyle")
    parser.add_argument("--always", action="store_true", help="never be faithful")
    return parser.parse_args()


def open_port(options: argparse.Namespace) -> socket.socket:
    """Bind and listen, and say where."""
    family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
    port = socket.create_server((options.address, options.port), family=family)
    print(f"listening on {options.address}:{port.getsockname()[1]}", flush=True)
    return port


def play(fault: Fault | None, options: argparse.Namespace) -> None:
    """Commit *fault* on the first connection; be faithful on the others until one says DISC."""
    port = open_port(options)
    for number in itertools.count(1):
        sock, _ = port.accept()
        sock.settimeout(60)
        print(f"connection {number}", flush=True)
        sender = Sender(sock, options.image, options.style)
        try:
            if fault is not None and (number == 1 or options.always):
                fault(sender, options)
                continue
            sender.say_hello()
            sender.serve_until_disc()
        except (raw_nbd.Ended, ConnectionError) as error:
            print(f"connection {number} ended before DISC: {error}", flush=True)
            continue
        finally:
            sender.close()
        print("complete", flush=True)
        return
