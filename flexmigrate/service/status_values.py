"""From a server's state to the frozen values that tell of it: the only place where the fields of
Status, and of a migration's samples and summary, are filled in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from flexmigrate.migration.destination.machine import DestinationCore
from flexmigrate.migration.ownership.status import ImageState
from flexmigrate.migration.request import Action
from flexmigrate.migration.source.convergence import ConvergenceVerdict
from flexmigrate.migration.source.machine import Core
from flexmigrate.server.export import Export
from flexmigrate.service.migration_values import flush_failure, pass_number, write_limit
from flexmigrate.telemetry.states import DestinationState, SourceState
from flexmigrate.telemetry.status import Status

if TYPE_CHECKING:
    from flexmigrate.service.front import ServingFront
    from flexmigrate.service.migrating import MigratingExport
    from flexmigrate.service.watch import Watch


def serving_status(serving: ServingFront, about: MigratingExport, now: float) -> Status:
    """Return the status of a server that owns its images, and of one of its exports.

    :param now: the reactor's time, in seconds.
    """
    export = about.host.export
    status = Status(
        pid=os.getpid(),
        size=export.size,
        has_control=about.owns,
        clients_allowed=serving.is_open,
        num_clients=len(serving.factory.clients),
        is_mirroring=about.is_mirroring,
        size_changed=_size_changed(export),
        flush_failed=flush_failure(export),
        export=export.name or None,
        num_exports=len(serving.exports),
        poll_hits=serving.factory.poller.hits if serving.factory.poller else None,
        poll_misses=serving.factory.poller.misses if serving.factory.poller else None,
        last_migration=about.last_migration,
    )
    status = _with_storage(status, export)
    watch = about.watch
    if about.is_mirroring and about.migration is not None and watch is not None:
        return _with_migration(status, about.migration, watch, now)
    if about.migration is None or watch is None:
        return status
    # The other fields of a migration are there only while it runs, as programs know them.
    return replace(status, migration_state=about.migration.state.label, summary=watch.summary)


def _with_storage(status: Status, export: Export) -> Status:
    """Add what is known of the filesystem that the image is on."""
    trust = export.storage.trust
    if trust is None:
        return status
    return replace(
        status, filesystem=trust.filesystem, holes="trusted" if trust.holes else "unknown"
    )


def _with_migration(status: Status, core: Core, watch: Watch, now: float) -> Status:
    progress = core.progress
    speed = progress.rate.value(now)
    left = core.dirty.bytes if core.dirty is not None else status.size
    number = pass_number(core)
    convergence = core.convergence
    downtime = convergence.downtime(left)
    return replace(
        status,
        migration_duration=int(now - core.began),
        migration_speed=int(speed),
        migration_speed_limit=core.limit.bytes_per_second or None,
        migration_seconds_left=_seconds_left(core, left, speed, now),
        migration_bytes_left=left,
        migration_phase=core.state.phase,
        migration_state=core.state.label,
        migration_pass=number,
        migration_attempt=core.attempts,
        migration_error=core.last_error,
        migration_bytes_sent=progress.sent,
        migration_bytes_compared=progress.compared,
        migration_address=watch.address,
        migration_handover=_handover(core),
        migration_pass_size=progress.pass_size if number else None,
        migration_pass_sent=progress.pass_sent if number else None,
        migration_verdict=convergence.verdict.value,
        migration_warning=None if core.attempt is None else core.attempt.warning,
        migration_obstacle=core.obstacle,
        migration_fitting=convergence.fitting(now) if convergence.send_rate else None,
        migration_downtime=None if downtime is None else round(downtime, 3),
        migration_allowed_downtime=round(convergence.allowed, 3),
        migration_send_rate=int(convergence.send_rate) or None,
        migration_dirty_rate=_dirty_rate(core, now),
        migration_write_limit=write_limit(core),
        migration_parked=watch.parked_seconds(now),
    )


def _handover(core: Core) -> str | None:
    """Return how it is handed over, once that is known; a copy isn't at all."""
    known = core.attempt is not None and core.terms.action is not Action.NOTHING
    return core.attempt.handover_kind if core.attempt is not None and known else None


def _size_changed(export: Export) -> str | None:
    export.look()
    return None if export.storage.is_closed else export.storage.size_fault() or export.storage.cut


def _seconds_left(core: Core, left: int, speed: float, now: float) -> int | None:
    """Return when *left* is sent, with all that clients make dirty until then."""
    gain = speed - core.convergence.dirty_rate(now)
    if gain <= 0 or core.convergence.verdict is ConvergenceVerdict.NOT_CONVERGING:
        return None
    return int(left / gain)


def _dirty_rate(core: Core, now: float) -> int | None:
    if core.dirty is None:
        return None
    return int(core.convergence.dirty_rate(now))


def listening_status(core: DestinationCore, export: Export, num_clients: int) -> Status:
    """Return the status of a server that waits for, or receives, a migration."""
    status = Status(
        pid=os.getpid(),
        size=export.size,
        has_control=core.handover.owned,
        clients_allowed=core.busy is None,
        num_clients=num_clients,
        is_mirroring=False,
        size_changed=_size_changed(export),
        flush_failed=flush_failure(export),
        export=export.name or None,
        listening_phase=core.state.phase,
        listening_state=core.state.label,
        sender=core.sender.address if core.sender is not None else None,
        covered_bytes=core.coverage.covered,
        compared_bytes=core.digest.compared,
        digest=core.digest.text,
    )
    return _with_storage(status, export)


def settling_status(
    export: Export, image_state: ImageState, state: SourceState, seconds: float
) -> Status:
    """Return the status of a server that only has a handover confirmed which was begun before.

    :param image_state: the state of the image.
    :param state: of a source that does the same.
    :param seconds: since it asks.
    """
    record = image_state.record
    return Status(
        pid=os.getpid(),
        size=export.size,
        has_control=image_state.is_owned(serving=True),
        clients_allowed=False,
        num_clients=0,
        is_mirroring=True,
        export=export.name or None,
        num_exports=1,
        migration_duration=int(seconds),
        migration_bytes_left=0,
        migration_phase=state.phase,
        migration_state=state.label,
        migration_address=None if record is None else record.address or None,
    )


def with_rebind(status: Status, serving: ServingFront, now: float) -> Status:
    """Return *status* of a server that was a destination: what it waits for, and for how long."""
    (listening,) = serving.ports
    rebind = listening.rebind
    if rebind is None or listening.is_open:
        return _with_state(status, DestinationState.SERVING)
    return replace(
        _with_state(
            status, DestinationState.FAILED if rebind.gave_up else DestinationState.REBINDING
        ),
        rebind_attempts=rebind.tries,
        rebind_error=rebind.error,
        rebind_seconds=int(now - rebind.since),
    )


def _with_state(status: Status, state: DestinationState) -> Status:
    return replace(status, listening_phase=state.phase, listening_state=state.label)


def describe(statuses: Iterable[Status], places: Iterable[object]) -> str:
    """Return what a server is doing, in a sentence for ``systemctl status``.

    :param statuses: of each of its exports.
    :param places: where it listens.
    """
    first, *others = statuses
    migrating = [each for each in (first, *others) if each.is_mirroring]
    where = ", ".join(map(str, places))
    if migrating:
        return "; ".join(map(_migration, migrating))
    if first.listening_phase == "rebinding":
        return f"the image is here; can't serve it yet: {first.rebind_error}"
    if first.listening_phase == "receiving":
        percent = 100 * (first.covered_bytes or 0) // first.size if first.size else 0
        return f"receiving at {where}: {percent} % of {first.size} bytes"
    if first.listening_phase == "waiting":
        return f"waiting for a migration at {where}"
    if first.listening_phase == "complete":
        return "the image is here"
    exports = f"{1 + len(others)} exports" if others else "an image"
    return f"serving {exports} at {where}, {first.num_clients} clients"


def _migration(status: Status) -> str:
    name = f"export {status.export}, " if status.export else ""
    text = (
        f"migrating: {name}{status.migration_state}, attempt {status.migration_attempt}, pass"
        f" {status.migration_pass}, {status.migration_bytes_left} bytes left"
    )
    if status.migration_seconds_left is not None:
        text += f", about {status.migration_seconds_left} s"
    return text
