from __future__ import annotations

from typing import Any

from twisted.internet import error
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import (
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IReactorUNIX,
    IStreamClientEndpoint,
)
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer, implementer_only

from flexmigrate.client import NBDClientProtocol, URIError, connect, connect_uri
from flexmigrate.errors import ConnectFailed, ConnectionGone, NoHello, Rejected

HELLO = bytes.fromhex("4e42444d41474943 0000420281861253 0000000000010000 00000000") + bytes(124)


@implementer(IStreamClientEndpoint)
class Endpoint:
    """An endpoint that connects to the test, or doesn't."""

    def __init__(self, outcome: Deferred | None = None) -> None:
        self.outcome = outcome
        self.transport = StringTransport()
        self.protocol: Any = None

    def connect(self, factory: Any) -> Deferred:
        if self.outcome is not None:
            return self.outcome
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)
        return succeed(self.protocol)


class Connecting(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = Endpoint()

    def connect(self) -> Deferred[NBDClientProtocol]:
        return connect(self.endpoint, clock=self.clock)

    def test_gives_a_connection_that_is_ready_and_no_timer(self) -> None:
        connecting = self.connect()
        self.endpoint.protocol.dataReceived(HELLO)
        self.assertEqual(self.successResultOf(connecting).size, 65536)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_tells_that_nobody_is_there(self) -> None:
        for cause in (
            error.ConnectionRefusedError(),
            error.DNSLookupError(),
            error.TimeoutError(),
        ):
            self.endpoint = Endpoint(fail(cause))
            failure = self.failureResultOf(self.connect(), ConnectFailed)
            self.assertIs(failure.value.__cause__, cause)

    def test_tells_a_refusal_from_silence(self) -> None:
        connecting = self.connect()
        self.endpoint.protocol.connectionLost(Failure(error.ConnectionDone()))
        self.failureResultOf(connecting, Rejected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_does_not_wait_for_a_hello_for_ever(self) -> None:
        connecting = self.connect()
        self.endpoint.protocol.dataReceived(HELLO[:100])
        self.clock.advance(4.9)
        self.assertNoResult(connecting)
        self.clock.advance(0.1)
        self.failureResultOf(connecting, NoHello)
        self.assertTrue(self.endpoint.transport.disconnected)

    def test_can_be_cancelled_while_negotiating(self) -> None:
        connecting = self.connect()
        connecting.cancel()
        self.failureResultOf(connecting, ConnectionGone)
        self.assertTrue(self.endpoint.transport.disconnected)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_can_be_cancelled_while_connecting(self) -> None:
        cancelled: list[Deferred] = []
        self.endpoint = Endpoint(Deferred(cancelled.append))
        connecting = self.connect()
        connecting.cancel()
        self.assertEqual(cancelled, [self.endpoint.outcome])
        self.failureResultOf(connecting)


@implementer_only(IReactorPluggableNameResolver, IReactorTCP, IReactorTime, IReactorUNIX)
class Reactor(MemoryReactorClock):
    """A reactor without descriptors, for which there are no stream transports."""


class ConnectingToAURI(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()

    def test_goes_to_the_socket_that_it_names(self) -> None:
        connect_uri(self.reactor, "nbd+unix:///x?socket=/run/s", connect_timeout=7)
        ((path, _, timeout, _),) = self.reactor.unixClients
        self.assertEqual((path, timeout), ("/run/s", 7))

    def test_goes_to_the_host_and_port_that_it_names(self) -> None:
        connect_uri(self.reactor, "nbd://127.0.0.1:4/x")
        self.reactor.advance(1)
        self.assertEqual(self.reactor.tcpClients[0][:2], ("127.0.0.1", 4))

    def test_that_requires_tls_is_refused_where_there_is_none(self) -> None:
        self.assertRaises(URIError, connect_uri, self.reactor, "nbds://127.0.0.1/x")
        self.assertEqual(self.reactor.tcpClients, [])
