"""Limits of what a server takes from its clients, and their reasons."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CLIENTS = 10000
"""Connections that a server has at the same time, unless it's told otherwise."""


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
    """

    negotiation_seconds: float = 30.0
    request_seconds: float | None = None
    clients: int = MAX_CLIENTS
    host_clients: int = 0

    @property
    def clients_of_one_host(self) -> int:
        """The number of connections that one host may have."""
        return self.host_clients or self.clients - self.clients // 4
