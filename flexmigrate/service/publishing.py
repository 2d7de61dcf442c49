"""What a server tells over HTTP, where it was told to: opened with it, closed with it.

Nothing of it is imported, or measured, by a server that wasn't.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure

from flexmigrate.config import Place
from flexmigrate.migration.destination.machine import DestinationCore
from flexmigrate.migration.source.machine import Core
from flexmigrate.server.connection import NBDServerProtocol
from flexmigrate.server.export import Export
from flexmigrate.server.factory import NBDServerFactory
from flexmigrate.server.measuring import Meter
from flexmigrate.service.port import ListeningPort
from flexmigrate.service.watching import Watch
from flexmigrate.telemetry.history import Tally
from flexmigrate.telemetry.status import Status
from flexmigrate.web.view import (
    Blocks,
    ClientView,
    ExportView,
    Look,
    Moving,
    PoolView,
    ServerView,
)

FAREWELL_SECONDS = 1.0
"""For those who look on to be told how the process ends, and again for their connections to end:
the process must not be kept from ending by them.
"""


class Publishing:
    """The HTTP of one server.

    :param metrics: where its metrics are offered, or None.
    :param web: where its page is offered, or None.
    :param look: returns what there is to see.
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
        """Stop listening, and begin to tell those who look on how the process ends."""
        if self._feed is not None:
            from flexmigrate.web.page import farewell

            self._told = self._feed.close(farewell(status, reason))
        closing = [listening.close() for listening, _ in self._offers]
        return gatherResults(closing).addCallback(lambda _: None)

    def finish(self) -> Deferred[None]:
        """Close the connections, of those who haven't heard of the end in time too."""
        return Deferred.fromCoroutine(self._finish())

    async def _finish(self) -> None:
        with suppress(DeferredTimeout):
            await self._told.addTimeout(FAREWELL_SECONDS, self._reactor)
        for _, factory in self._offers:
            await factory.close_connections(FAREWELL_SECONDS)


def _first_cause(failure: Failure) -> Failure:
    return failure.value.subFailure if isinstance(failure.value, FirstError) else failure


def clients_by_export(factory: NBDServerFactory) -> Counter[Export | None]:
    """Return how many of a server's connections use which export; counted once for all of them."""
    return Counter(client.export for client in factory.clients)


def export_view(
    export: Export,
    clients: int,
    meter: Meter,
    status: Status,
    tally: Tally,
    moving: Moving | None,
) -> ExportView:
    """Return what is seen of *export*, which so many *clients* use."""
    return ExportView(
        name=export.name,
        status=status,
        clients=clients,
        waiting=export.background.pending,
        meter=meter.of(export.name),
        tally=tally,
        moving=moving,
    )


def sending(core: Core | None, watch: Watch | None) -> Moving | None:
    """Return what is seen of a migration away from here."""
    if core is None or watch is None:
        return None
    layers: dict[str, Blocks] = {}
    if core.dirty is not None:
        layers["left"] = core.dirty
    if core.unverified is not None:
        layers["unverified"] = core.unverified
    return Moving(core.began, watch.history, layers)


def receiving(core: DestinationCore) -> Moving:
    """Return what is seen of a migration to here."""
    return Moving(0.0, None, {"received": core.coverage})


def server_view(
    exports: Iterable[ExportView], clients: Iterable[NBDServerProtocol], pool: Any
) -> ServerView:
    """Return what is seen of a server.

    :param clients: its connections.
    :param pool: its ``image.shares.ImageThreads``.
    """
    seen = [
        ClientView(each.number, each.address, None if each.export is None else each.export.name)
        for each in sorted(clients, key=lambda client: client.number)
    ]
    return ServerView(
        list(exports),
        PoolView(pool.max, pool.busy, pool.shares.queued),
        seen,
    )
