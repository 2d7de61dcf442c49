"""An export: an image under a name, with the means for a migration to observe and park clients.

A migration *observes* the clients' changes, *throttles* clients that write too fast, and at
the end *parks* them. The image below and the wire know nothing of this; the connections above
ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from flexmigrate.image.storage import Storage
from flexmigrate.net.hang_ups import HangUps
from flexmigrate.server.holds import Holdable, Holds
from flexmigrate.server.throttle import Throttle
from flexmigrate.wire.constants import BASE_ALLOCATION, TransmissionFlag
from flexmigrate.wire.handshake import ExportInfo

DIRTY_CONTEXT = "flexmigrate:dirty"

MOST_AHEAD = 16 * 1024 * 1024
"""Bytes that are kept for all connections of one export, which were read only to see whether
their peer's end follows: a little more than one connection has in both kernels (tcp(7),
``tcp_rmem`` and ``tcp_wmem``)."""

_FLAGS = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_FUA
    | TransmissionFlag.SEND_CACHE
    | TransmissionFlag.BLOCK_STATUS_PAYLOAD
)
_WRITABLE_FLAGS = (
    TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_FAST_ZERO
)


class ChangeObserver(Protocol):
    """An observer of all changes to an export; called on the reactor's thread, often."""

    def mark(self, offset: int, length: int) -> None:
        """Note a change of *length* bytes from *offset*; the client is answered afterwards."""

    def failed(self, offset: int, length: int, error: BaseException) -> None:
        """Note that a change failed, and may have happened in part."""

    def refused(self, text: str) -> None:
        """Note that a change was refused before it began; *text* has the reason."""

    def flush_failed(self, error: BaseException) -> None:
        """Note that a flush failed: it is unknown which earlier changes are on the disk. Data that
        is read is unaffected.
        """


class Gated(Holdable, Protocol):
    """A connection, as an export sees it.

    :ivar transport: its transport, which shows whether its peer has hung up.
    """

    transport: Any

    @property
    def backlog(self) -> int:
        """The number of bytes that were read and kept while no request is taken."""

    def has_hung_up(self, most: int) -> bool:
        """Read and keep received data, up to *most* bytes; return whether the peer's
        end follows it.
        """

    def abandon(self) -> None:
        """End, since the peer has hung up and others are here: begin nothing more, tell
        ``orphaned`` of the changes that are in progress.
        """


class Export:
    """One image under one name.

    :ivar name: the name that clients ask for; the empty name is the default export.
    :ivar storage: the image's bytes.
    :ivar observer: the observer of changes, or None. One at most: a migration.
    :ivar throttle: the throttle of writers, or None.
    :ivar takes_several: whether it is advertised that a client may use several connections.
    :ivar turns: the number of times that requests were served, one or many at a time.
    :ivar dirty_runs: yields the dirty (offset, length) runs of a running migration, or None.
    :ivar look: called before a client is told the size, and when a request has failed:
        the image may have another size now.
    """

    def __init__(
        self,
        name: str,
        storage: Storage,
        *,
        read_only: bool = False,
        description: str = "",
    ) -> None:
        self.name = name
        self.takes_several = True
        self.storage = storage
        self.read_only = read_only or storage.read_only
        self.description = description
        self.size = storage.size
        self.observer: ChangeObserver | None = None
        self.throttle: Throttle | None = None
        self.dirty_runs: Callable[[int, int], Iterator[tuple[int, int]]] | None = None
        self.look: Callable[[], object] = _nothing
        self.parked = False
        self.turns = 0
        self._connections: dict[Gated, None] = {}  # in the order in which they came
        self._hang_ups: HangUps[Gated] = HangUps()
        self._ahead: set[Gated] = set()  # of which was read to see whether they have hung up
        self._under_way = 0
        self._orphans: dict[object, int] = {}  # changes that lost connections left under way
        self._behind_orphans: dict[Gated, set[object]] = {}  # who waits for which of them
        self._idle_waiters: list[Deferred[None]] = []

    @property
    def info(self) -> ExportInfo:
        """The description of this export for the negotiation."""
        self.look()
        flags = _FLAGS
        if self.takes_several:
            flags |= TransmissionFlag.CAN_MULTI_CONN
        if self.read_only:
            flags |= TransmissionFlag.READ_ONLY
        else:
            flags |= _WRITABLE_FLAGS
        return ExportInfo(
            name=self.name,
            size=self.size,
            flags=flags,
            description=self.description,
            contexts=(BASE_ALLOCATION, DIRTY_CONTEXT),
        )

    # Connections

    def join(self, connection: Gated) -> None:
        """Add *connection*, which begins to send requests; it waits if the export is parked."""
        self._connections[connection] = None
        self._hang_ups.add(connection, connection.transport)
        if self.parked:
            connection.hold(Holds.PARKED)

    def begin(self, connection: Gated) -> None:
        """Prepare for *connection*'s first request. Its client may be one that comes back
        and asks again for what its last connection asked for, and an old change must not be done
        after a newer one was answered.

        So other connections whose peer has hung up begin nothing more, and this one waits for
        changes that they, or connections that are lost, left under way. (Until somebody else is
        here, who only sends no more may wait for his answers.)
        """
        for other in self._stale(connection):
            other.abandon()
        if self._orphans:
            # Not for those of others that are lost later: there might always be some.
            self._behind_orphans[connection] = set(self._orphans)
            connection.hold(Holds.ORPHANS)

    def _stale(self, served: Gated | None = None) -> list[Gated]:
        """Return the connections whose peer has hung up, and that stand in the way of *served*, or
        of anybody: not the one that came last, where all have hung up.
        """
        if self.read_only or len(self._connections) < 2:
            return []
        gone, unread = self._hang_ups.look()
        if unread:
            self._ahead = {each for each in self._ahead if each.backlog}
            left = MOST_AHEAD - sum(each.backlog for each in self._ahead)
            for connection in unread:
                if connection is served or left <= 0:
                    continue
                before = connection.backlog
                if connection.has_hung_up(left):
                    gone.append(connection)
                left -= connection.backlog - before
                self._ahead.add(connection)
        if served is None and len(gone) == len(self._connections):
            served = next(reversed(self._connections))
        if served not in gone:
            return gone
        # It sends no more itself, and nobody comes back from a later connection to an earlier one
        # that he has closed.
        order = list(self._connections)
        return [each for each in order[: order.index(served)] if each in gone]

    def leave(self, connection: Gated) -> None:
        """*connection* is gone."""
        self._connections.pop(connection, None)
        self._ahead.discard(connection)
        self._hang_ups.remove(connection)
        self._behind_orphans.pop(connection, None)
        if self.throttle is not None:
            self.throttle.leave(connection)

    # Requests that are carried out off the reactor's thread

    def begun(self, count: int) -> None:
        """So many requests were handed to a thread."""
        self._under_way += count

    def ended(self, count: int = 1) -> None:
        """So many are done, and their changes, if any, were marked."""
        self._under_way -= count
        if not self._under_way:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                waiter.callback(None)

    def orphaned(self, whose: object, changes: int) -> None:
        """A connection is gone, and so many changes that it asked for are under way; *whose* tells
        them from others'.
        """
        if changes:
            self._orphans[whose] = changes

    def orphan_ended(self, whose: object) -> None:
        """One of these is done."""
        self._orphans[whose] -= 1
        if self._orphans[whose]:
            return
        del self._orphans[whose]
        for connection, awaited in list(self._behind_orphans.items()):
            awaited.discard(whose)
            if not awaited:
                del self._behind_orphans[connection]
                connection.release(Holds.ORPHANS)

    def idle(self) -> Deferred[None]:
        """Fire when no request is with a thread, which may be now."""
        if not self._under_way:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._idle_waiters.append(waiter)
        return waiter

    # Slowing writers down

    def slow_writers(self, clock: IReactorTime, rate: float, meter: Callable[[], int]) -> None:
        """Let all clients together dirty no more than *rate* bytes a second: see `Throttle`."""
        if self.throttle is None:
            self.throttle = Throttle(clock, rate, meter)
        else:
            self.throttle.rate = rate

    def free_writers(self) -> None:
        """Let them write as they like; who waits goes on at once."""
        throttle, self.throttle = self.throttle, None
        if throttle is not None:
            throttle.lift()

    # Parking

    def park(self) -> Deferred[None]:
        """Stop taking requests without closing anything; fire when none is under way any more.

        A request that was received in part stays so: it wasn't answered, and what was written of
        it is marked.
        """
        self.parked = True
        for connection in list(self._connections):
            connection.hold(Holds.PARKED)
        return self.idle()

    def unpark(self) -> None:
        """Let the requests in that waited, but for those of clients that have gone meanwhile while
        others wait. Does nothing where the export isn't parked.
        """
        if self.parked:
            self.parked = False
            for connection in self._stale():
                connection.abandon()
            for connection in list(self._connections):
                connection.release(Holds.PARKED)


def _nothing() -> None:
    """Nothing changes by itself."""


class ExportDirectory:
    """The exports of one server, found by name; what negotiation asks
    (``wire.handshake.Directory``).

    :param listable: whether LIST tells the names.
    """

    def __init__(self, exports: Iterable[Export], *, listable: bool = True) -> None:
        self._exports = {export.name: export for export in exports}
        self._withdrawn: set[str] = set()
        self._listable = listable

    def __iter__(self) -> Iterator[Export]:
        return iter(self._exports.values())

    def export(self, name: str) -> Export:
        """Return the export; raise KeyError where there is none of this name."""
        return self._exports[name]

    def find(self, name: str) -> ExportInfo | None:
        """Return what to tell about the export *name*, or None."""
        export = self._exports.get(name)
        return export.info if export and name not in self._withdrawn else None

    def names(self) -> Iterable[tuple[str, str]]:
        """Return (name, description) of each export."""
        return [(each.name, each.description) for each in self if each.name not in self._withdrawn]

    def listable(self) -> bool:
        """Return whether the names may be told."""
        return self._listable

    # While an export is handed over

    def withdraw(self, name: str) -> None:
        """Let no client find the export *name* any more."""
        self._withdrawn.add(name)

    def restore(self, export: Export) -> None:
        """Let clients find it again."""
        self._withdrawn.discard(export.name)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing left to find."""
        return len(self._withdrawn) == len(self._exports)
