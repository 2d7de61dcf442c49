"""What is seen of a server from outside: one value for each export, made when somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flexmigrate.history import Tally
from flexmigrate.server.measuring import ExportMeter
from flexmigrate.status import Status


@dataclass(frozen=True)
class ExportView:
    """One export at one moment.

    :ivar status: see `Status`; of the server, its fields are the same for each export.
    :ivar clients: connections that use it.
    :ivar waiting: requests and other calls that are with the thread pool, or wait for it.
    :ivar meter: what was measured of its requests; goes on changing.
    :ivar tally: what its migrations came to, the one that runs included.
    """

    name: str
    status: Status
    clients: int
    waiting: int
    meter: ExportMeter
    tally: Tally


@dataclass(frozen=True)
class PoolView:
    """The thread pool of a server.

    :ivar most: threads that it may have.
    :ivar busy: threads that work now.
    :ivar queued: calls that wait for a thread.
    """

    most: int
    busy: int
    queued: int


@dataclass(frozen=True)
class ServerView:
    """A server at one moment.

    :ivar exports: at least one.
    """

    exports: Sequence[ExportView]
    pool: PoolView = field(default_factory=lambda: PoolView(0, 0, 0))


Look = Callable[[], ServerView]
