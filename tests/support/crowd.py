"""Many clients at once, in one thread: each connects, and asks for the default export once it is
greeted.

As a client does that has lost its connection, one that is refused or reset tries again. One that
is connected waits: the server speaks first, and nothing tells it that it is not known there.
"""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import time
from collections import deque

from support.raw_nbd import OPT_GO, OPTION, OPTION_MAGIC

GREETING = b"NBDMAGICIHAVEOPT"

# The client's flags, and the option for the default export.
ASKED = struct.pack(">I", 3) + OPTION.pack(OPTION_MAGIC, OPT_GO, 6) + bytes(6)

# What a client that tries again is told meanwhile.
AGAIN = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.EAGAIN, errno.ENOENT}

PAUSE_SECONDS = 0.02


class Crowd:
    """See the module; a context manager, which ends them all.

    :param host: of the server, or the path of its UNIX socket.
    :param count: how many they are.
    :param bind: the address that they come from.
    :ivar tries: how often they have begun to connect, all together.
    """

    def __init__(self, host: str, port: int, count: int, *, bind: str | None = None) -> None:
        self._address = host if host.startswith("/") else (host, port)
        self._bind = bind
        self._count = count
        self._selector = selectors.EpollSelector()
        self._waiting: dict[socket.socket, bytes] = {}  # for what, next
        self._let_in: set[socket.socket] = set()
        self._later: deque[float] = deque()
        self.tries = 0

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (*self._let_in, *self._waiting):
            sock.close()
        self._selector.close()

    def come(self, timeout: float) -> float:
        """Connect all at once; return after how many seconds the last one was let in.

        :raises AssertionError: some were not, within *timeout* seconds.
        """
        for _ in range(self._count):
            self._connect()
        return self._until(lambda: len(self._let_in) == self._count, timeout)

    def come_back(self, timeout: float) -> float:
        """Wait until all have lost their connections and are let in again, and do so likewise."""
        old = frozenset(self._let_in)
        return self._until(
            lambda: len(self._let_in) == self._count and not self._let_in & old, timeout
        )

    def _until(self, is_done: object, timeout: float) -> float:
        assert callable(is_done)
        began = time.monotonic()
        while not is_done():
            assert time.monotonic() - began < timeout, (
                f"{len(self._let_in)} of {self._count} are let in, {len(self._waiting)} wait"
                f" after {timeout} s and {self.tries} tries"
            )
            while self._later and self._later[0] <= time.monotonic():
                self._later.popleft()
                self._connect()
            for key, _ in self._selector.select(PAUSE_SECONDS):
                self._look(key.fileobj)  # type: ignore[arg-type]  # a socket
        return time.monotonic() - began

    def _connect(self) -> None:
        self.tries += 1
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        sock = socket.socket(family)
        sock.setblocking(False)
        if self._bind is not None:
            sock.bind((self._bind, 0))
        number = sock.connect_ex(self._address)
        if number not in (0, errno.EINPROGRESS):
            self._try_again(sock, number)
            return
        self._waiting[sock] = GREETING
        self._selector.register(sock, selectors.EVENT_READ)

    def _look(self, sock: socket.socket) -> None:
        try:
            said = sock.recv(4096)
            if said and self._waiting.get(sock) == GREETING:
                assert said[: len(GREETING)] == GREETING
                self._waiting[sock] = b""
                sock.sendall(ASKED)
                return
        except OSError as error:
            said, number = b"", error.errno or 0
        else:
            number = errno.ECONNRESET
        if said:
            self._waiting.pop(sock, None)
            self._let_in.add(sock)
        else:
            self._selector.unregister(sock)
            self._waiting.pop(sock, None)
            self._let_in.discard(sock)
            self._try_again(sock, number)

    def _try_again(self, sock: socket.socket, number: int) -> None:
        sock.close()
        assert number in AGAIN, errno.errorcode[number]
        self._later.append(time.monotonic() + PAUSE_SECONDS)
