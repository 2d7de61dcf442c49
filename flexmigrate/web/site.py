"""Our HTTP server: who may ask, and what it takes of them.

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
"""At once: more than monitoring and all the people who look on at one server need."""

MAX_OF_ONE_HOST = 32
"""Of these. On a UNIX socket nobody knows who is who."""

REQUEST_SECONDS = 10.0
"""For a request to come, from when its connection stands."""

ANSWER_SECONDS = 30.0
"""For its answer to be taken: Prometheus gives up after 10."""

SLOW_SECONDS = 2.0
"""Whose answer isn't taken by then may have to make room for others."""

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
        """Keep no body; Twisted would, in memory or in a file."""
        self.content = _Nowhere()

    def process(self) -> None:
        for name, value in _HEADERS.items():
            self.setHeader(name, value)  # type: ignore[no-untyped-call]  # Twisted's
        self._connection.is_asked()
        super().process()  # type: ignore[no-untyped-call]

    def goes_on(self) -> None:
        """Have its answer go on for as long as it is read, which is somebody else's to see to."""
        self._connection.goes_on()

    @property
    def _connection(self) -> Any:
        return self.channel.transport


class _Channel(HTTPChannel):
    def checkPersistence(self, request: Any, version: bytes) -> bool:
        """Take one request, or the answers to many could be asked for, and not be read."""
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        return False


class _Site(Site):
    noisy = False
    protocol: Any = _Channel

    def log(self, request: Any) -> None:
        """Say nothing: it would be a line a second for each who looks on."""


class _Connection(ProtocolWrapper):
    """One connection, whose time is limited.

    :ivar host: what it is counted by, or None.
    :ivar is_leaving: it was told to go.
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
        """Its request has come: begin to wait until the answer is taken."""
        self._was_asked = True
        self._since = self._reactor.seconds()
        self._timer.reset(ANSWER_SECONDS)

    def goes_on(self) -> None:
        """Its answer has no end."""
        self._since = None
        self._timer.cancel()

    @property
    def may_go(self) -> bool:
        """Whether it may have to make room."""
        if self._since is None or self.is_leaving:
            return False
        return not self._was_asked or self._reactor.seconds() - self._since > SLOW_SECONDS

    def leave(self) -> None:
        """End it at once."""
        self.is_leaving = True
        self.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget it."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        super().connectionLost(reason)  # type: ignore[no-untyped-call]  # Twisted's


class HTTPFactory(WrappingFactory):
    """Makes the connections, as many as there may be."""

    noisy = False

    def __init__(self, reactor: Any, site: Site) -> None:
        super().__init__(site)  # type: ignore[no-untyped-call]  # Twisted's has no types
        self.reactor = reactor
        self._closed: Deferred[None] | None = None

    def buildProtocol(self, addr: Any) -> Any:
        address = None if isinstance(addr, UNIXAddress) else getattr(addr, "host", None)
        host = None if address is None else host_of(address)
        if not self._has_room(host):
            log.warn("refused an HTTP connection from {host}: there are too many", host=host)
            return None
        wrapped = self.wrappedFactory.buildProtocol(addr)
        return None if wrapped is None else _Connection(self, wrapped, host)

    def _has_room(self, host: str | None) -> bool:
        """Return whether one more may come from *host*; one that is slow makes room for it."""
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
        """Called by a connection that is gone."""
        super().unregisterProtocol(p)  # type: ignore[no-untyped-call]
        self._tell_if_closed()

    def close_connections(self, seconds: float) -> Deferred[None]:
        """Close them all once they were written what was meant for them, after *seconds* in any
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
            # One piece, then it's everybody else's turn.
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
                log.failure("the metrics met a bug", result)
                request.loseConnection()  # so that half of them isn't taken for all
            elif not gone:
                request.finish()

        self._cooperator.cooperate(write()).whenDone().addBoth(ended)
        return NOT_DONE_YET


def metrics_root(reactor: Any, exposition: Exposition) -> Resource:
    """Return what a server for metrics alone has: ``/metrics``."""
    root = Resource()
    root.putChild(b"metrics", Metrics(reactor, exposition))
    return root


def http_factory(reactor: Any, root: Resource) -> HTTPFactory:
    """Return the factory that serves *root*."""
    site = _Site(  # type: ignore[no-untyped-call]  # Twisted's has no types
        root, requestFactory=_Request, timeout=None, reactor=reactor
    )
    return HTTPFactory(reactor, site)
