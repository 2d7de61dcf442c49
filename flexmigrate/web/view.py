"""A read-only view of a server for HTTP: one value for each export, made upon request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flexmigrate.server.measuring import ExportMeter
from flexmigrate.telemetry.history import History, Tally
from flexmigrate.telemetry.status import Status


class Blocks(Protocol):
    """Some of the blocks of an image: those still to be sent, or those that were received.

    :ivar size: of the image, in bytes.
    :ivar block_size: in bytes, a power of two.
    """

    @property
    def size(self) -> int: ...  # see above

    @property
    def block_size(self) -> int: ...

    def bytes_in(self, offset: int, length: int) -> int:
        """Return how many bytes such blocks have in a range, whose *offset* begins a block."""


@dataclass(frozen=True)
class ClientView:
    """One connection of a client.

    :ivar number: tells connections apart, as in the log.
    :ivar address: host and port, or ``unix``.
    :ivar export: that it uses; None while it negotiates.
    """

    number: int
    address: str
    export: str | None


@dataclass(frozen=True)
class Moving:
    """A migration as one of its ends sees it: one that runs, or the last one.

    :ivar began: the reactor's time, in seconds.
    :ivar history: what it looked like over time, where that is known; goes on changing.
    :ivar layers: what there is to see of the image's blocks, by its name in `web.document`.
    """

    began: float
    history: History | None
    layers: Mapping[str, Blocks]


@dataclass(frozen=True)
class ExportView:
    """One export at one moment.

    :ivar status: see `Status`; of the server, its fields are the same for each export.
    :ivar clients: connections that use it.
    :ivar waiting: requests and other calls that are with the thread pool, or wait for it.
    :ivar meter: what was measured of its requests; goes on changing.
    :ivar tally: what its migrations came to, the one that runs included.
    :ivar moving: None where there was no migration.
    """

    name: str
    status: Status
    clients: int
    waiting: int
    meter: ExportMeter
    tally: Tally
    moving: Moving | None = None


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
    :ivar clients: the connections that stand, the oldest first.
    """

    exports: Sequence[ExportView]
    pool: PoolView = field(default_factory=lambda: PoolView(0, 0, 0))
    clients: Sequence[ClientView] = ()


Look = Callable[[], ServerView]


def shown(name: str) -> str:
    """Return *name* as UTF-8 can have it: one from the command line may be any bytes."""
    return name.encode("utf-8", "backslashreplace").decode()
