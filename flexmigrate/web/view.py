"""A read-only view of a server for HTTP: one value for each export, made upon request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flexmigrate.server.measuring import ExportMeter
from flexmigrate.telemetry.history import History, Tally
from flexmigrate.telemetry.status import Status


class Blocks(Protocol):
    """A set of blocks of an image: those to be sent, or those that were received.

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

    :ivar number: the connection's number, as in the log.
    :ivar address: host and port, or ``unix``.
    :ivar export: the export that it uses; None while it negotiates.
    """

    number: int
    address: str
    export: str | None


@dataclass(frozen=True)
class Moving:
    """A migration at one of its ends: a running one, or the last one.

    :ivar began: the reactor's time, in seconds.
    :ivar history: its history, if it is known; it goes on changing.
    :ivar layers: sets of the image's blocks, by their names in `web.document`.
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
    :ivar meter: the counters of its requests; they go on changing.
    :ivar tally: the totals of its migrations, including a running one.
    :ivar moving: its migration; None if there was none.
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
    :ivar clients: the open connections, the oldest first.
    """

    exports: Sequence[ExportView]
    pool: PoolView = field(default_factory=lambda: PoolView(0, 0, 0))
    clients: Sequence[ClientView] = ()


Look = Callable[[], ServerView]


def shown(name: str) -> str:
    """Return *name* as valid UTF-8: a name from the command line may be any bytes."""
    return name.encode("utf-8", "backslashreplace").decode()
