"""The environment of a migration: the server whose image moves, and the destination's timeouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from twisted.internet.defer import Deferred

from flexmigrate.client import NBDClientProtocol
from flexmigrate.errors import FlexmigrateError, MigrationError
from flexmigrate.migration.lock import OwnedLock
from flexmigrate.wire.constants import SECTOR

if TYPE_CHECKING:
    from flexmigrate.migration.source.proposal import Proposal


class SizeMismatch(MigrationError):
    """The destination's export is larger or smaller than the image.

    :param there: the destination's size, in bytes.
    :param here: the image's.
    """

    def __init__(self, there: int, here: int) -> None:
        text = f"the destination has {there} bytes, the image {here}"
        if abs(there - here) < SECTOR and not there % SECTOR:
            # Rounded down, the last bytes would be lost; rounded up, there would be too many.
            text += f": it counts in sectors of {SECTOR} bytes, which the image doesn't fill"
        super().__init__(text)


class Stalled(FlexmigrateError):
    """The destination made no progress for too long."""


@dataclass(frozen=True)
class Timeouts:
    """The time that a destination may take for each step.

    :ivar hello_seconds: the time until the negotiation with the destination is over.
    :ivar request_seconds: the time without any progress while requests are in flight.
    :ivar connections: the number of connections to use, if the destination takes several.
    :ivar retry_seconds: the least time from a failed attempt to the next.
    :ivar drop_cache: whether sent data is dropped from the source's page cache.
    """

    hello_seconds: float = 5.0
    request_seconds: float = 60.0
    connections: int = 1
    retry_seconds: float = 1.0
    drop_cache: bool = False


class MigrationEnvironment(Protocol):
    """The server whose image moves, as an attempt needs it."""

    @property
    def lock(self) -> OwnedLock:
        """The migration lock."""

    def dial(self, hello_seconds: float, proposal: Proposal | None) -> Deferred[NBDClientProtocol]:
        """Connect to the destination.

        :param proposal: what is said of ourselves there; None for another connection to a server
            that knows us.
        """

    def stop_listening(self) -> Deferred[None]:
        """Free the serving address; clients stay connected."""

    def resume_listening(self) -> Deferred[None]:
        """Take the serving address again; may come before ``stop_listening`` has ended."""

    def dismiss(self) -> None:
        """Close the clients, who won't be served here any more: they find the image elsewhere."""
