"""The connections of our HTTP server: how long they may take, and who makes room for whom."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from flexmigrate.web.site import (
    ANSWER_SECONDS,
    MAX_CONNECTIONS,
    MAX_OF_ONE_HOST,
    REQUEST_SECONDS,
    SLOW_SECONDS,
    http_factory,
)

ASKED = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


class Slow(Resource):
    """Answers later, or never."""

    isLeaf = True  # noqa: N815  # Twisted's name

    def __init__(self, *, for_ever: bool = False) -> None:
        super().__init__()
        self.for_ever = for_ever

    def render_GET(self, request: Any) -> object:  # noqa: N802  # Twisted's name
        if self.for_ever:
            request.goes_on()
        request.write(b"begun")
        return NOT_DONE_YET


class Connection:
    """A client's."""

    def __init__(self, factory: Any, address: Any) -> None:
        self.transport = StringTransport()
        self.transport.abortConnection = self.abort  # type: ignore[method-assign]
        self.aborted = False
        self.protocol = factory.buildProtocol(address)
        if self.protocol is not None:
            self.protocol.makeConnection(self.transport)

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def asks(self, path: bytes) -> Connection:
        self.protocol.dataReceived(ASKED % path)
        return self


class ConnectionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        root = Resource()
        root.putChild(b"slow", Slow())
        root.putChild(b"events", Slow(for_ever=True))
        self.factory = http_factory(self.clock, root)

    def connect(self, host: str | None = "192.0.2.1") -> Connection:
        address = UNIXAddress(None) if host is None else IPv4Address("TCP", host, 1)
        return Connection(self.factory, address)

    def test_a_request_has_to_come_in_time_however_much_is_said_meanwhile(self) -> None:
        client = self.connect()
        for piece in (b"GET / HT", b"TP/1.1\r\n", b"Host", b": a\r\n"):
            client.protocol.dataReceived(piece)
            self.clock.advance(REQUEST_SECONDS / 4 - 0.1)
        self.assertFalse(client.aborted)
        self.clock.advance(1)
        self.assertTrue(client.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_its_answer_has_to_be_taken_in_time(self) -> None:
        client = self.connect().asks(b"slow")
        self.clock.advance(ANSWER_SECONDS - 1)
        self.assertFalse(client.aborted)
        self.clock.advance(1)
        self.assertTrue(client.aborted)

    def test_one_that_has_no_end_is_for_its_feed_to_see_to(self) -> None:
        client = self.connect().asks(b"events")
        self.clock.advance(3600)
        self.assertFalse(client.aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_connection_is_for_one_request(self) -> None:
        client = self.connect()
        client.protocol.dataReceived((ASKED % b"missing") * 3)
        said = client.transport.value()
        self.assertEqual(said.count(b"HTTP/1.1 404"), 1)
        self.assertIn(b"connection: close", said.lower())
        self.assertTrue(client.transport.disconnecting)

    def test_the_oldest_that_was_not_asked_makes_room(self) -> None:
        clients = [self.connect(f"192.0.2.{number}") for number in range(MAX_CONNECTIONS)]
        clients[0].asks(b"slow")
        late = self.connect()
        self.assertIsNotNone(late.protocol)
        self.assertEqual([each.aborted for each in clients[:3]], [False, True, False])

    def test_one_that_takes_its_answer_slowly_does_so_too(self) -> None:
        clients = [
            self.connect(f"192.0.2.{number}").asks(b"slow") for number in range(MAX_CONNECTIONS)
        ]
        self.assertIsNone(self.connect().protocol)
        self.clock.advance(SLOW_SECONDS + 1)
        self.assertIsNotNone(self.connect().protocol)
        self.assertEqual([each.aborted for each in clients[:2]], [True, False])

    def test_one_host_leaves_room_to_others(self) -> None:
        watching = [self.connect().asks(b"events") for _ in range(MAX_OF_ONE_HOST)]
        self.assertIsNone(self.connect().protocol)
        self.assertIsNotNone(self.connect("192.0.2.2").protocol)
        self.assertFalse(any(each.aborted for each in watching))

    def test_on_a_unix_socket_hosts_are_not_known(self) -> None:
        for _ in range(MAX_CONNECTIONS):
            self.assertIsNotNone(self.connect(None).asks(b"events").protocol)
        self.assertIsNone(self.connect(None).protocol)
