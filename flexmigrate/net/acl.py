"""Access lists: which peer addresses may connect.

An access list knows nothing of connections. The server applies a changed list to clients that are
connected already.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from flexmigrate.errors import FlexmigrateError

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Host = ipaddress.IPv4Address | ipaddress.IPv6Address

# RFC 4291, 2.5.5.2: the address of an IPv4 peer at a socket that listens on both families.
_IPV4_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")


class BadEntry(FlexmigrateError, ValueError):
    """An entry of an access list is neither an address nor a network; the message quotes it."""


@dataclass(frozen=True, init=False)
class AccessList:
    """The addresses and networks that may connect.

    A list with entries allows those and nobody else. An empty list allows everybody, or nobody
    if *default_deny*. IPv4 peers are matched by IPv4 entries, also where they come through an IPv6
    socket: ``::/0`` means every IPv6 address and no IPv4 one.

    :param entries: ``10.0.0.1``, ``10.0.0.0/8``, ``2001:db8::/32``; bits behind the prefix are
        ignored.
    :raises BadEntry: naming the first entry that is none.
    """

    networks: tuple[_Network, ...]
    default_deny: bool

    def __init__(self, entries: Iterable[str] = (), default_deny: bool = False) -> None:
        object.__setattr__(self, "networks", tuple(map(_parse_entry, entries)))
        object.__setattr__(self, "default_deny", default_deny)

    def allows(self, host: str | None) -> bool:
        """Return whether the peer *host* may connect.

        :param host: the peer's IP address; ``None`` for a peer on a UNIX socket, which is allowed
            always: the permissions of the socket's file decide there.
        """
        if host is None:
            return True
        if not self.networks:
            return not self.default_deny
        try:
            address = _unmapped(host)
        except ValueError:
            return False
        return any(address in network for network in self.networks)


def _unmapped(host: str) -> _Host:
    # The zone of a link-local address ("%eth0") names the peer's link; it doesn't identify the
    # peer.
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _parse_entry(entry: str) -> _Network:
    try:
        if "%" in entry:
            raise BadEntry(
                f"bad spec: {entry!r}: an access list names peers, not links: "
                f"remove the part from % on"
            )
        network = ipaddress.ip_network(entry, strict=False)
    except BadEntry:
        raise
    except ValueError:
        raise BadEntry(f"bad spec: {entry!r} is neither an IP address nor a network") from None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_IPV4_MAPPED):
        base = network.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(base or 0), network.prefixlen - _IPV4_MAPPED.prefixlen))
    return network
