"""Limits of what a server takes from its clients, and their reasons."""

from __future__ import annotations

from dataclasses import dataclass

from flexmigrate.errors import UsageError, check_type

MAX_CLIENTS = 10000
"""Connections that a server has at the same time, unless it's told otherwise."""


MOST_CLIENTS = 100000
"""The highest limit that a server can be told: each client costs a descriptor and some KiB."""

KILLSWITCH_SECONDS = 120
"""What flexnbd's killswitch allows a request to take."""


@dataclass(frozen=True)
class Limits:
    """The limits that a server imposes on its clients.

    :ivar negotiation_seconds: to choose an export. Real clients need milliseconds; this leaves
        room for a far and busy one, and a connection that says nothing costs little for so long.
    :ivar request_seconds: for a request to become complete (the killswitch), or None for no limit.
    :ivar clients: connections at once. Each costs a descriptor and some KiB; this is more than the
        virtual machines of many hosts have.
    :ivar host_clients: how many of them one host may have; 0 for all but a quarter, which is left
        to others. There is no such limit on a UNIX socket.
    :raises UsageError: a value isn't allowed; each is at least 1, or more than 0 s, and clients are
        at most `MOST_CLIENTS`.
    """

    negotiation_seconds: float = 30.0
    request_seconds: float | None = None
    clients: int = MAX_CLIENTS
    host_clients: int = 0

    def __post_init__(self) -> None:
        """Refuse what would let nobody in, or fail once somebody comes."""
        check_type("clients", self.clients, int)
        check_type("host_clients", self.host_clients, int)
        check_type("negotiation_seconds", self.negotiation_seconds, float)
        check_type("request_seconds", self.request_seconds, float, type(None))
        if not 1 <= self.clients <= MOST_CLIENTS:
            raise UsageError(f"clients={self.clients}: it must be from 1 to {MOST_CLIENTS}")
        if not 0 <= self.host_clients <= MOST_CLIENTS:
            raise UsageError(
                f"host_clients={self.host_clients}: it must be from 0 to {MOST_CLIENTS}"
            )
        for name in ("negotiation_seconds", "request_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise UsageError(f"{name}={seconds}: it must be more than 0")

    @property
    def clients_of_one_host(self) -> int:
        """The number of connections that one host may have."""
        return self.host_clients or self.clients - self.clients // 4
