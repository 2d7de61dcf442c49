"""From a server's state to the frozen values that metrics and the page are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from flexmigrate.migration.destination.machine import DestinationCore
from flexmigrate.migration.source.machine import Core
from flexmigrate.server.connection import NBDServerProtocol
from flexmigrate.server.export import Export
from flexmigrate.server.factory import NBDServerFactory
from flexmigrate.server.measuring import Meter
from flexmigrate.service.front import ServingFront
from flexmigrate.service.watch import Watch
from flexmigrate.telemetry.history import Tally
from flexmigrate.telemetry.status import Status
from flexmigrate.web.view import Blocks, ClientView, ExportView, Moving, PoolView, ServerView


def clients_by_export(factory: NBDServerFactory) -> Counter[Export | None]:
    """Return how many of a server's connections use which export; counted once for all of them."""
    return Counter(client.export for client in factory.clients)


def serving_view(
    front: ServingFront,
    status: Callable[[str], Status],
    meter: Meter,
    pool: Any,
    now: float,
    received: Moving | None,
) -> ServerView:
    """Return what is seen of a server that serves images.

    :param status: returns what the operator's socket tells about the export of that name.
    :param now: the reactor's time, in seconds.
    :param received: what is seen of the migration that has brought the one image, if one has.
    """
    clients = clients_by_export(front.factory)
    views = (
        export_view(
            each.host.export,
            clients[each.host.export],
            meter,
            status(each.host.export.name),
            each.tally(now),
            sending(each.migration, each.watch) or received,
        )
        for each in front.exports.values()
    )
    return server_view(views, front.factory.clients, pool)


def receiving_view(
    core: DestinationCore, factory: NBDServerFactory, meter: Meter, status: Status, pool: Any
) -> ServerView:
    """Return what is seen of a server that receives an image."""
    export = core.export
    clients = clients_by_export(factory)[export]
    view = export_view(export, clients, meter, status, Tally(), receiving(core))
    return server_view([view], factory.clients, pool)


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
        waiting=export.storage.pending,
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
