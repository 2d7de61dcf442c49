"""The HTTP server, with limits for its clients.

It only ever answers GET and HEAD, and has no means to change anything. A request's body is thrown
away. A connection is for one request, which has to come, and whose answer has to be taken, within a
limited time; connections are few, one host has half of them at most, and where there is no place
left, those that are slow make room. So nobody can fill this process's memory or disk through it, or
keep others away.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Cooperator
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from flexmigrate.server.factory import host_of
from flexmigrate.web.exposition import CONTENT_TYPE, Exposition

log = Logger()

MAX_CONNECTIONS = 64
"""Connections at a time: more than monitoring and all viewers of one server need."""

MAX_OF_ONE_HOST = 32
"""Connections of one host. On a UNIX socket clients can't be told apart."""

REQUEST_SECONDS = 10.0
"""Seconds from a connection's start until its request has come."""

ANSWER_SECONDS = 30.0
"""Seconds in which the client has to read the answer; Prometheus gives up after 10."""

SLOW_SECONDS = 2.0
"""Seconds after which a connection with an unread answer may have to make room for others."""

_HEADERS = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
}


class _Nowhere(BytesIO):
    """A sink that discards the bodies of requests."""

    def write(self, data: Any) -> int:
        return len(data)


class _Request(Request):
    def gotLength(self, length: int | None) -> None:  # noqa: N802  # Twisted's name
        """Discard the body, which Twisted would keep in memory or in a file."""
        self.content = _Nowhere()

    def process(self) -> None:
        for name, value in _HEADERS.items():
            self.setHeader(name, value)  # type: ignore[no-untyped-call]  # Twisted's
        self._connection.is_asked()
        super().process()  # type: ignore[no-untyped-call]

    def goes_on(self) -> None:
        """Lift the time limit of the answer; the caller has to limit it."""
        self._connection.goes_on()

    @property
    def _connection(self) -> Any:
        return self.channel.transport


class _Channel(HTTPChannel):
    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Take one request per connection; a client could ask for many answers and read none."""
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        return False


class _Site(Site):
    noisy = False
    protocol: Any = _Channel

    def log(self, request: Any) -> None:
        """Log nothing: it would be a line a second for each viewer."""


class _Connection(ProtocolWrapper):
    """A connection with a time limit.

    :ivar host: the host by which it is counted, or None.
    :ivar is_leaving: whether it was told to end.
    """

    def __init__(self, factory: HTTPFactory, protocol: Any, host: str | None) -> None:
        made_by: Any = factory
        super().__init__(made_by, protocol)
        self.host = host
        self.is_leaving = False
        self._reactor = factory.reactor
        self._since: float | None = self._reactor.seconds()  # the present step; None: for ever
        self._was_asked = False
        self._timer: Any = None

    def makeConnection(self, transport: Any) -> None:
        """Begin to wait for the request."""
        self._timer = self._reactor.callLater(REQUEST_SECONDS, self.leave)
        super().makeConnection(transport)  # type: ignore[no-untyped-call]  # Twisted's

    def is_asked(self) -> None:
        """Begin to wait until the answer is read: the request has come."""
        self._was_asked = True
        self._since = self._reactor.seconds()
        self._timer.reset(ANSWER_SECONDS)

    def goes_on(self) -> None:
        """Lift the time limit: the answer has no end."""
        self._since = None
        self._timer.cancel()

    @property
    def may_go(self) -> bool:
        """Whether it may have to make room for others."""
        if self._since is None or self.is_leaving:
            return False
        return not self._was_asked or self._reactor.seconds() - self._since > SLOW_SECONDS

    def leave(self) -> None:
        """End the connection at once."""
        self.is_leaving = True
        self.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Remove the connection from the factory."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # Twisted's


class HTTPFactory(WrappingFactory):
    """The factory of HTTP connections, which limits their number."""

    noisy = False

    def __init__(self, reactor: Any, site: Site) -> None:
        super().__init__(site)  # type: ignore[no-untyped-call]  # Twisted's has no types
        self.reactor = reactor
        self._closed: Deferred[None] | None = None

    def buildProtocol(self, addr: Any) -> Any:
        address = None if isinstance(addr, UNIXAddress) else getattr(addr, "host", None)
        host = None if address is None else host_of(address)
        if not self._has_room(host):
            log.warn("refused an HTTP connection from {host}: too many are open", host=host)
            return None
        wrapped = self.wrappedFactory.buildProtocol(addr)
        return None if wrapped is None else _Connection(self, wrapped, host)

    def _has_room(self, host: str | None) -> bool:
        """Return whether *host* may open another connection; a slow one is ended to make room."""
        standing = [each for each in self.protocols if not each.is_leaving]
        its = standing if host is None else [each for each in standing if each.host == host]
        if host is not None and len(its) >= MAX_OF_ONE_HOST:
            candidates = its
        elif len(standing) >= MAX_CONNECTIONS:
            candidates = standing
        else:
            return True
        for each in candidates:  # the oldest first
            if each.may_go:
                each.leave()
                return True
        return False

    def unregisterProtocol(self, p: Any) -> None:  # noqa: N802  # Twisted's name
        """Remove a connection that is gone."""
        super().unregisterProtocol(p)  # type: ignore[no-untyped-call]
        self._tell_if_closed()

    def close_connections(self, seconds: float) -> Deferred[None]:
        """Close all connections once their data is written, after *seconds* in any
        case; fire when they are gone.
        """
        closed = self._closed = Deferred()
        for connection in list(self.protocols):
            connection.loseConnection()
        late = self.reactor.callLater(seconds, self._abort)
        closed.addCallback(lambda _: late.cancel() if late.active() else None)
        self._tell_if_closed()
        return closed

    def _abort(self) -> None:
        for connection in list(self.protocols):
            connection.abortConnection()

    def _tell_if_closed(self) -> None:
        if self._closed is not None and not self.protocols:
            closed, self._closed = self._closed, None
            closed.callback(None)


class Metrics(Resource):
    """``/metrics``: see `Exposition`."""

    isLeaf = True  # noqa: N815  # Twisted's name

    def __init__(self, reactor: Any, exposition: Exposition) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._exposition = exposition
        self._cooperator = Cooperator(
            # One piece, then others have their turn.
            terminationPredicateFactory=lambda: lambda: True,
            scheduler=lambda step: reactor.callLater(0, step),
        )

    def render_GET(self, request: Any) -> object:  # noqa: N802  # Twisted's name
        """Write the metrics, piece by piece."""
        request.setHeader(b"content-type", CONTENT_TYPE)
        gone: list[Failure] = []
        request.notifyFinish().addErrback(gone.append)

        def write() -> Iterator[None]:
            for piece in self._exposition.pieces():
                if gone:
                    return
                request.write(piece)
                yield None

        def ended(result: object) -> None:
            if isinstance(result, Failure):
                log.failure("the metrics failed with an unexpected error", result)
                request.loseConnection()  # so that a part isn't taken for the whole
            elif not gone:
                request.finish()

        self._cooperator.cooperate(write()).whenDone().addBoth(ended)
        return NOT_DONE_YET


def metrics_root(reactor: Any, exposition: Exposition) -> Resource:
    """Return the root resource of a server that has only ``/metrics``."""
    root = Resource()
    root.putChild(b"metrics", Metrics(reactor, exposition))
    return root


def http_factory(reactor: Any, root: Resource) -> HTTPFactory:
    """Return the factory that serves *root*."""
    site = _Site(  # type: ignore[no-untyped-call]  # Twisted's has no types
        root, requestFactory=_Request, timeout=None, reactor=reactor
    )
    return HTTPFactory(reactor, site)
