"""From a server's state to the frozen Status: the only place where its fields are filled in."""

from __future__ import annotations

import os
from dataclasses import replace

from flexmigrate.migration.destination import DestinationCore
from flexmigrate.migration.source import Core
from flexmigrate.server.export import Export
from flexmigrate.service.migrating import MigratingExport
from flexmigrate.service.serving import Serving
from flexmigrate.status import ListeningPhase, Status


def serving_status(serving: Serving, about: MigratingExport, now: float) -> Status:
    """Return the status of a server that owns its images, and of one of its exports.

    :param now: the reactor's time, in seconds.
    """
    export = about.host.export
    status = Status(
        pid=os.getpid(),
        size=export.size,
        has_control=not about.given_away,
        clients_allowed=serving.is_open,
        num_clients=len(serving.factory.clients),
        is_mirroring=about.is_mirroring,
        export=export.name or None,
        num_exports=len(serving.exports),
        last_migration=about.last_migration,
    )
    if about.is_mirroring and about.migration is not None:
        return _with_migration(status, about.migration, now)
    return status


def _with_migration(status: Status, core: Core, now: float) -> Status:
    speed = core.progress.rate.value(now)
    left = core.dirty.bytes if core.dirty is not None else status.size
    return replace(
        status,
        migration_duration=int(now - core.began),
        migration_speed=int(speed),
        migration_speed_limit=core.limit.bytes_per_second or None,
        migration_seconds_left=int(left / speed) if speed else None,
        migration_bytes_left=left,
        migration_phase=core.phase,
        migration_pass=core.attempt.passes if core.attempt else 0,
        migration_attempt=core.attempts,
        migration_error=core.last_error,
        migration_bytes_sent=core.progress.sent,
    )


def listening_status(
    core: DestinationCore, export: Export, num_clients: int, phase: ListeningPhase
) -> Status:
    """Return the status of a server that waits for, or receives, a migration."""
    return Status(
        pid=os.getpid(),
        size=export.size,
        has_control=core.handover.owned,
        clients_allowed=core.busy is None,
        num_clients=num_clients,
        is_mirroring=False,
        export=export.name or None,
        listening_phase=phase,
        covered_bytes=core.coverage.covered,
    )


def with_rebind(status: Status, serving: Serving, now: float) -> Status:
    """Return *status* of a server that was a destination: what it waits for, and for how long."""
    (listening,) = serving.listenings
    rebind = listening.rebind
    if rebind is None or listening.is_open:
        return replace(status, listening_phase="serving")
    return replace(
        status,
        listening_phase="rebinding",
        rebind_attempts=rebind.tries,
        rebind_error=rebind.error,
        rebind_seconds=int(now - rebind.since),
    )
