"""The HTTP server of a server that was told to have one: it is opened and closed with it.

A server without it imports and measures nothing for it.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure

from flexmigrate.config import Place
from flexmigrate.service.port import ListeningPort
from flexmigrate.web.view import Look

FAREWELL_SECONDS = 1.0
"""Seconds for viewers to get the process's result, and again for their connections to end:
they must not delay its end.
"""


class Publishing:
    """The HTTP of one server.

    :param metrics: the place to serve metrics at, or None.
    :param web: the place to serve the page at, or None.
    :param look: returns the current view of the server.
    :raises UsageError: a place describes no endpoint.
    """

    def __init__(self, reactor: Any, metrics: Place | None, web: Place | None, look: Look) -> None:
        self._reactor = reactor
        self._offers: list[tuple[ListeningPort, Any]] = []
        self._feed: Any = None
        self._told: Deferred[None] = succeed(None)
        if metrics is not None:
            from flexmigrate.web.exposition import Exposition
            from flexmigrate.web.site import metrics_root

            self._offer(metrics, metrics_root(reactor, Exposition(look)), "metrics")
        if web is not None:
            from flexmigrate.web.document import Document
            from flexmigrate.web.feed import Feed
            from flexmigrate.web.page import page_root

            self._feed = Feed(reactor, Document(look, secrets.token_hex(4)).pieces)
            self._offer(web, page_root(self._feed), "web")

    def _offer(self, place: Place, root: Any, name: str) -> None:
        from flexmigrate.web.site import http_factory

        factory = http_factory(self._reactor, root)
        what = "metrics" if name == "metrics" else "the page"
        made: Any = factory
        listening = ListeningPort(self._reactor, place, made, f"--{name}", what=what)
        self._offers.append((listening, factory))

    def open(self) -> Deferred[None]:
        """Listen. Fails with CannotListenError or FlexmigrateError."""
        opening = [listening.open() for listening, _ in self._offers]
        opened = gatherResults(opening, consumeErrors=True)
        return opened.addCallbacks(lambda _: None, _first_cause)

    def close(self, status: int | None, reason: str | None) -> Deferred[None]:
        """Stop listening, and begin to send the process's result to viewers."""
        if self._feed is not None:
            from flexmigrate.web.page import farewell

            self._told = self._feed.close(farewell(status, reason))
        closing = [listening.close() for listening, _ in self._offers]
        return gatherResults(closing).addCallback(lambda _: None)

    def finish(self) -> Deferred[None]:
        """Close the connections, also of viewers that haven't read the result in time."""
        return Deferred.fromCoroutine(self._finish())

    async def _finish(self) -> None:
        with suppress(DeferredTimeout):
            await self._told.addTimeout(FAREWELL_SECONDS, self._reactor)
        for _, factory in self._offers:
            await factory.close_connections(FAREWELL_SECONDS)


def _first_cause(failure: Failure) -> Failure:
    return failure.value.subFailure if isinstance(failure.value, FirstError) else failure
