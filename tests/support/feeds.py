"""A server's connection over either feed, driven by hand: no thread, no waiting, no real clock.

`PlainFeed` is a transport in memory that calls `dataReceived`, with Twisted's rules held against
who uses it; `StreamFeed` is the stream transport over a pair of real sockets. `Bench` has what both
need: a reactor that turns when it is told to, whose clock is the test's, and a pool whose work is
done when the test says so.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from flexmigrate.net import streaming

# As in Twisted's own transports (abstract.FileDescriptor).
BUFFER = 64 * 1024

# More turns than anything here takes: a test that would turn for ever ends.
TURNS = 10_000

# Seconds that the kernel may take for what takes it less than a millisecond.
PATIENCE = 60


class HandPool:
    """A thread pool without threads: `work` does one call.

    :ivar at_once: whether calls are done when the reactor next turns, without being asked for.
    """

    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()
        self.at_once = True

    def callInThreadWithCallback(self, answer: Any, call: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N802
        """Keep a call, as IThreadPool has it."""
        self.waiting.append((answer, call, args, kwargs))

    def work(self) -> None:
        """Do the call that has waited longest."""
        answer, call, args, kwargs = self.waiting.popleft()
        try:
            result = call(*args, **kwargs)
        except Exception:  # noqa: BLE001  # what a pool does with it
            answer(False, Failure())
        else:
            answer(True, result)


class Bench:
    """The base of simulated connections. `close` it.

    :ivar clock: the only time there is.
    :ivar reactor: a real one that is never run.
    :ivar pool: see HandPool.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.pool = HandPool()
        reactor: Any = EPollReactor()
        reactor.seconds = self.clock.seconds
        self.reactor = reactor
        self.feeds: list[PlainFeed | StreamFeed] = []

    def advance(self, seconds: float) -> None:
        """Let time pass, in one step, and what is due happen."""
        self.clock.advance(seconds)
        self.settle()

    def turn(self) -> bool:
        """Let everything happen that can; return whether anything did."""
        busy = bool(self.reactor.threadCallQueue)
        self.reactor.iterate(0)
        for feed in self.feeds:
            busy = feed.turn() or busy
        if self.pool.at_once and self.pool.waiting:
            self.pool.work()
            busy = True
        return busy

    def settle(self) -> None:
        """Turn until nothing happens any more."""
        quiet = 0
        for _ in range(TURNS):
            # What goes through a socket can be seen only at the next turn, or the one after.
            quiet = 0 if self.turn() else quiet + 1
            if quiet == 4:
                return
        raise AssertionError("it never settles")

    def until(self, happened: Callable[[], Any]) -> None:
        """Turn until something has happened for which the kernel may need a moment."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < deadline, "it never happens"
            self.reactor.iterate(0.05)

    def close(self) -> None:
        """Free the descriptors, and end what still stands."""
        for feed in self.feeds:
            feed.vanish()
        self.pool.at_once = True
        self.settle()
        for selectable in self.reactor.removeAll():
            selectable.connectionLost(Failure(CONNECTION_LOST))
        self.reactor.waker.connectionLost(Failure(CONNECTION_LOST))
        self.reactor._poller.close()


class PlainTransport:
    """A transport in memory, as strict as Twisted's are lenient, or more.

    It doesn't close while it has a producer, drops what is written after `loseConnection`, and
    takes neither `pauseProducing` nor `resumeProducing` by then.
    """

    TLS = False

    def __init__(self, peer: Any) -> None:
        self.peer = peer
        self.sent = bytearray()
        self.reading = True
        self.disconnecting = False
        self.aborted = False
        self.producer: Any = None
        self.producer_paused = False
        self.most_held = 0

    def write(self, data: bytes) -> None:
        assert type(data) is bytes, type(data)
        if self.disconnecting:
            return
        self.sent += data
        self.most_held = max(self.most_held, len(self.sent))
        if len(self.sent) > BUFFER and self.producer is not None and not self.producer_paused:
            self.producer_paused = True
            self.producer.pauseProducing()

    def drain(self, most: int) -> bytes:
        """Take what the client reads."""
        piece = bytes(self.sent[:most])
        del self.sent[:most]
        if not self.sent and self.producer is not None and self.producer_paused:
            self.producer_paused = False
            self.producer.resumeProducing()
        return piece

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def pauseProducing(self) -> None:
        assert not self.disconnecting, "paused after its end"
        self.reading = False

    def resumeProducing(self) -> None:
        assert not self.disconnecting, "resumed after its end"
        self.reading = True

    def loseConnection(self) -> None:
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.disconnecting = self.aborted = True
        self.sent.clear()

    def getPeer(self) -> Any:
        return self.peer

    def getHost(self) -> Any:
        return self.peer

    @property
    def closes(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.aborted or (self.disconnecting and self.producer is None and not self.sent)


class PlainFeed:
    """A client's end of a plain transport.

    :ivar read_limit: bytes that the client still reads; None for all that come.
    :ivar received: what it has read.
    :ivar ended: whether the connection has ended.
    """

    name = "plain"

    def __init__(self, bench: Bench, factory: Any, host: str = "192.0.2.1") -> None:
        peer = IPv4Address("TCP", host, 1024)
        self.received = bytearray()
        self.read_limit: int | None = None
        self.ended = False
        self._toward: deque[bytes] = deque()
        self.protocol = factory.buildProtocol(peer)
        self.refused = self.protocol is None
        if self.protocol is not None:
            self.transport = PlainTransport(peer)
            self.protocol.makeConnection(self.transport)
            bench.feeds.append(self)

    def send(self, data: bytes) -> None:
        """Send, in one packet."""
        self._toward.append(bytes(data))

    def turn(self) -> bool:
        if self.ended:
            return False
        if self.transport.closes:
            self._end(ConnectionAborted() if self.transport.aborted else ConnectionDone())
            return True
        most = len(self.transport.sent) if self.read_limit is None else self.read_limit
        piece = self.transport.drain(most) if self.transport.sent else b""
        self.received += piece
        if self.read_limit is not None:
            self.read_limit -= len(piece)
        gets = self.transport.reading and not self.transport.disconnecting and self._toward
        if gets:
            self.protocol.dataReceived(self._toward.popleft())
        return bool(gets or piece)

    def _end(self, reason: Exception) -> None:
        self.ended = True
        if self.transport.producer is not None:
            self.transport.producer.stopProducing()
        self.protocol.connectionLost(Failure(reason))

    def vanish(self) -> None:
        """End the connection from the client's side, without a word."""
        if not self.ended:
            self._end(ConnectionDone())

    @property
    def unread(self) -> int:
        """Bytes that the server has not taken yet."""
        return sum(map(len, self._toward))


class StreamFeed:
    """A client's end of a stream transport; as PlainFeed."""

    name = "stream"

    def __init__(self, bench: Bench, factory: Any, host: str = "192.0.2.1") -> None:
        self.received = bytearray()
        self.read_limit: int | None = None
        self.ended = False
        self._toward = bytearray()
        self.protocol = factory.buildProtocol(IPv4Address("TCP", host, 1024))
        self.refused = self.protocol is None
        if self.protocol is None:
            return
        self.sock, server = socket.socketpair()
        self.sock.setblocking(False)
        server.setblocking(False)
        self.transport: Any = streaming._StreamUNIXServer(
            server, self.protocol, UNIXAddress(None), None, 1, bench.reactor
        )
        self.protocol.makeConnection(self.transport)
        # Little room, so that a client that doesn't read is soon noticed.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        bench.feeds.append(self)

    def send(self, data: bytes) -> None:
        """Send; as much as fits goes at once."""
        self._toward += data
        self._push()

    def _push(self) -> bool:
        pushed = False
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while self._toward:
                del self._toward[: self.sock.send(self._toward)]
                pushed = True
        return pushed

    def turn(self) -> bool:
        if self.ended:
            return False
        pushed = self._push()
        most = 1 << 20 if self.read_limit is None else self.read_limit
        if not most:
            return pushed
        try:
            piece = self.sock.recv(most)
        except BlockingIOError:
            return pushed
        except ConnectionError:
            piece = b""
        if not piece:
            self.ended = True
            self.sock.close()
        self.received += piece
        if self.read_limit is not None:
            self.read_limit -= len(piece)
        return True

    def vanish(self) -> None:
        """End the connection from the client's side, without a word."""
        self.ended = True
        self.sock.close()

    @property
    def unread(self) -> int:
        """Bytes that have not left the client yet."""
        return len(self._toward)


def open_descriptors() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
