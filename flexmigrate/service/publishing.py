"""What a server tells over HTTP, where it was told to: opened with it, closed with it.

Nothing of it is imported, or measured, by a server that wasn't.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.defer import Deferred, succeed

from flexmigrate.config import Place
from flexmigrate.history import Tally
from flexmigrate.server.export import Export
from flexmigrate.server.factory import NBDServerFactory
from flexmigrate.server.measuring import Meter
from flexmigrate.service.listening import Listening
from flexmigrate.status import Status
from flexmigrate.web.view import ExportView, Look, PoolView, ServerView


class Publishing:
    """The HTTP of one server.

    :param metrics: where its metrics are offered, or None.
    :param look: returns what there is to see.
    :raises UsageError: *metrics* describes no endpoint.
    """

    def __init__(self, reactor: Any, metrics: Place | None, look: Look) -> None:
        self._listening: Listening | None = None
        self._factory: Any = None
        if metrics is not None:
            from flexmigrate.web.exposition import Exposition
            from flexmigrate.web.site import http_factory, metrics_root

            root = metrics_root(reactor, Exposition(look))
            self._factory = http_factory(reactor, root)
            self._listening = Listening(
                reactor, metrics, self._factory, "--metrics", what="metrics"
            )

    def open(self) -> Deferred[None]:
        """Listen. Fails with CannotListenError or FlexmigrateError."""
        return succeed(None) if self._listening is None else self._listening.open()

    def close(self) -> Deferred[None]:
        """Stop listening, and close the connections."""
        if self._listening is None:
            return succeed(None)
        for connection in list(self._factory.protocols):
            connection.loseConnection()
        return self._listening.close()


def export_view(
    export: Export, factory: NBDServerFactory, meter: Meter, status: Status, tally: Tally
) -> ExportView:
    """Return what is seen of *export*, one of *factory*'s."""
    return ExportView(
        name=export.name,
        status=status,
        clients=sum(client.export is export for client in factory.clients),
        waiting=export.background.pending,
        meter=meter.of(export.name),
        tally=tally,
    )


def server_view(exports: Iterable[ExportView], pool: Any) -> ServerView:
    """Return what is seen of a server.

    :param pool: its ``twisted.python.threadpool.ThreadPool``.
    """
    work = pool._team.statistics()  # what dumpStats shows; there is no other way to the queue
    return ServerView(
        list(exports), PoolView(pool.max, work.busyWorkerCount, work.backloggedWorkCount)
    )
