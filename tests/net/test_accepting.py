"""Accepting connections: in bounded turns, and where descriptors or memory are used up."""

from __future__ import annotations

import errno
import socket
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.net import accepting
from flexmigrate.net.accepting import ACCEPTS_A_TURN, PAUSE_SECONDS, AcceptingPort
from flexmigrate.net.streaming import _StreamPort


class Listening:
    """A socket that listens: gives what it was told to, an error or a connection."""

    def __init__(self, *coming: int) -> None:
        self.coming = list(coming)  # 0 for a connection, or the number of an error
        self.ends: list[socket.socket] = []
        self.accepted: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        if not self.coming:
            raise BlockingIOError
        number = self.coming.pop(0)
        if number:
            raise OSError(number, "no")
        near, far = socket.socketpair()
        self.ends.append(far)
        self.accepted.append(near)
        return near, ("192.0.2.1", len(self.ends))


class Reactor(Clock):
    """Knows which port is read from."""

    def __init__(self) -> None:
        super().__init__()
        self.reading: set[Any] = set()

    def addReader(self, reader: Any) -> None:
        self.reading.add(reader)

    def removeReader(self, reader: Any) -> None:
        self.reading.discard(reader)


class Greeter(Protocol):
    def connectionMade(self) -> None:
        self.transport.write(b"hello")


class Transport:
    def __init__(self, sock: socket.socket, *_: object) -> None:
        self.sock = sock

    def write(self, data: bytes) -> None:
        self.sock.sendall(data)

    def abortConnection(self) -> None:
        self.sock.close()


class AcceptingTests(SynchronousTestCase):
    def accepting(self, *coming: int) -> Listening:
        factory = Factory.forProtocol(Greeter)
        self.reactor = Reactor()
        self.port: Any = _StreamPort(0, factory, reactor=self.reactor)
        self.port.transport = Transport
        self.port.connected = True
        self.port.socket = listening = Listening(*coming)
        self.port.startReading()
        self.addCleanup(lambda: [each.close() for each in listening.ends + listening.accepted])
        return listening

    def greeted(self, listening: Listening) -> int:
        return sum(each.recv(5) == b"hello" for each in listening.ends)

    def test_both_kinds_of_ports_do(self) -> None:
        self.assertTrue(issubclass(_StreamPort, AcceptingPort))

    def test_others_have_their_turn_after_a_few(self) -> None:
        listening = self.accepting(*[0] * (ACCEPTS_A_TURN + 3))
        self.port.doRead()
        self.assertEqual(self.greeted(listening), ACCEPTS_A_TURN)
        self.port.doRead()
        self.assertEqual(len(listening.ends), ACCEPTS_A_TURN + 3)

    def test_one_that_has_gone_before_it_was_accepted(self) -> None:
        listening = self.accepting(0, errno.ECONNABORTED, errno.EPERM, 0)
        self.port.doRead()
        self.assertEqual(self.greeted(listening), 2)

    def test_where_there_is_nothing_left_it_goes_on_later_and_says_so_once(self) -> None:
        said: list[str] = []
        self.patch(accepting.log, "warn", lambda text, **_: said.append(text))
        self.patch(accepting.log, "info", lambda text, **_: said.append(text))
        for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            listening = self.accepting(0, number, number, number, 0)
            for _ in range(3):
                self.port.doRead()
                self.assertEqual(self.reactor.reading, set())
                self.reactor.advance(PAUSE_SECONDS)
                self.assertEqual(self.reactor.reading, {self.port})
            self.assertEqual(len(said), 1)
            self.port.doRead()
            self.assertEqual(self.greeted(listening), 2)
            self.assertEqual(len(said), 2)
            self.port.doRead()
            self.assertEqual(len(said), 2)
            said.clear()

    def test_a_port_that_is_closed_meanwhile_stays_closed(self) -> None:
        self.accepting(errno.EMFILE)
        self.port.doRead()
        self.port.connectionLost = lambda _: None
        self.port.stopListening()
        self.reactor.advance(PAUSE_SECONDS * 2)
        self.assertEqual(self.reactor.reading, set())

    def test_a_bug_ends_that_connection_alone(self) -> None:
        listening = self.accepting(0, 0)
        built = self.port.factory.buildProtocol
        self.port.factory.buildProtocol = lambda _: 1 / 0
        self.port.doRead()
        self.port.factory.buildProtocol = built
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)
        self.assertEqual([each.recv(5) for each in listening.ends], [b"", b""])
