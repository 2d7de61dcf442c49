"""Our HTTP server: who may ask, and what it takes of them.

It only ever answers GET and HEAD, and has no means to change anything. A request's body is thrown
away, connections are few and end when they are idle, so nobody can fill this process's memory or
disk through it.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Cooperator
from twisted.logger import Logger
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from flexmigrate.web.exposition import CONTENT_TYPE, Exposition

log = Logger()

MAX_CONNECTIONS = 64
"""At once: more than monitoring and all the people who look on at one server need."""

IDLE_SECONDS = 30.0
"""Twice what Prometheus lets pass between two scrapes at most, usually."""

_HEADERS = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
}


class _Nowhere(BytesIO):
    """Where the bodies of requests go."""

    def write(self, data: Any) -> int:
        return len(data)


class _Request(Request):
    def gotLength(self, length: int | None) -> None:  # noqa: N802  # Twisted's name
        """Keep no body; Twisted would, in memory or in a file."""
        self.content = _Nowhere()

    def process(self) -> None:
        for name, value in _HEADERS.items():
            self.setHeader(name, value)  # type: ignore[no-untyped-call]  # Twisted's
        super().process()  # type: ignore[no-untyped-call]


class _Site(Site):
    noisy = False

    def log(self, request: Any) -> None:
        """Say nothing: it would be a line a second for each who looks on."""


class HTTPFactory(WrappingFactory):
    """Makes the connections, as many as there may be."""

    noisy = False

    def __init__(self, reactor: Any, site: Site) -> None:
        super().__init__(site)  # type: ignore[no-untyped-call]  # Twisted's has no types
        self._reactor = reactor
        self._closed: Deferred[None] | None = None

    def buildProtocol(self, addr: Any) -> Any:
        if len(self.protocols) >= MAX_CONNECTIONS:
            log.warn("refused an HTTP connection: there are {most}", most=MAX_CONNECTIONS)
            return None
        return super().buildProtocol(addr)

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
        late = self._reactor.callLater(seconds, self._abort)
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
        root, requestFactory=_Request, timeout=IDLE_SECONDS, reactor=reactor
    )
    return HTTPFactory(reactor, site)
