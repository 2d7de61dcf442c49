"""Addresses to listen on or to connect to, and their parsers.

No host name is looked up: a disk must not be sent to an address that may mean another host
tomorrow. Nothing is opened, and Twisted is not imported.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

from flexmigrate.errors import FlexmigrateError

MAX_PORT = 65535
# The characters that the kernel allows in the name of a network interface (dev_valid_name).
_ZONE = re.compile(r"[^\s/:%]{1,15}")
# unix(7): sun_path has 108 bytes, the last of which is the NUL that ends the path.
MAX_SOCKET_PATH = 107


class BadAddress(FlexmigrateError, ValueError):
    """The text is no address, no port or no path of a socket; the message quotes it."""


@dataclass(frozen=True)
class Address:
    """A TCP address (*host* and *port*) or a UNIX socket (*path*). Use the two class methods to
    make one.

    :ivar host: an IPv4 or IPv6 address without brackets; empty for a UNIX socket.
    :ivar port: 0 to 65535, where 0 asks the kernel for a free one; 0 for a UNIX socket.
    :ivar path: the path of a UNIX socket; empty for TCP.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    def __post_init__(self) -> None:
        if bool(self.host) == bool(self.path):
            raise BadAddress("an address has either a host or a path")

    @classmethod
    def tcp(cls, host: str, port: int) -> Address:
        """Return the address of *port* on *host*; the caller has checked both."""
        return cls(host=host, port=port)

    @classmethod
    def unix(cls, path: str) -> Address:
        """Return the address of the UNIX socket *path*; the caller has checked it."""
        return cls(path=path)

    @property
    def is_unix(self) -> bool:
        """Whether this is a UNIX socket."""
        return bool(self.path)

    def __str__(self) -> str:
        if self.is_unix:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_host(text: str) -> str:
    """Return the IPv4 or IPv6 address *text* in its usual spelling, or raise `BadAddress`.

    A link-local IPv6 address must be followed by its link, by name or number (RFC 4007):
    ``fe80::1%eth0``. The kernel doesn't accept it without the link.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise BadAddress(f"{text!r} is neither an IPv4 nor an IPv6 address") from None
    zone = getattr(address, "scope_id", None)
    if zone is not None and not _ZONE.fullmatch(zone):
        raise BadAddress(f"{zone!r} in {text!r} is not the name of a link")
    if zone is None and address.version == 6 and address.is_link_local:
        raise BadAddress(
            f"{text!r} is a link-local address, and its link is missing: {text}%eth0, for "
            f"example (in a URI: [{text}%25eth0])"
        )
    return str(address)


def parse_port(text: str, lowest: int = 0) -> int:
    """Return the port *text*, *lowest* to 65535, or raise `BadAddress`.

    :param lowest: 0 to listen on (the kernel chooses a free port), 1 to connect to.
    """
    # int() would also accept "1_0", " 10 " and digits of other scripts.
    if text.isascii() and text.isdigit() and lowest <= int(text) <= MAX_PORT:
        return int(text)
    raise BadAddress(f"{text!r} is not a port ({lowest} to {MAX_PORT})")


def parse_socket_path(text: str) -> str:
    """Return the path *text* if it is valid for a UNIX socket, or raise `BadAddress`."""
    if not text or "\0" in text:
        raise BadAddress(f"{text!r} is not a path")
    if len(os.fsencode(text)) > MAX_SOCKET_PATH:
        raise BadAddress(
            f"{text!r} is longer than the path of a UNIX socket can be ({MAX_SOCKET_PATH} bytes)"
        )
    return text


def parse_place(text: str) -> str:
    """Return the host, or the path if it begins with ``/``, in *text*.

    :raises BadAddress: if it is neither.
    """
    if text.startswith("/"):
        return parse_socket_path(text)
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise BadAddress(
            f"{text!r} is neither an IPv4 nor an IPv6 address, nor a path beginning with /"
        ) from None
    return parse_host(text)


def parse_address(addr: str, port: str | int | None = None, *, lowest_port: int = 0) -> Address:
    """Return the address for *addr* and *port*.

    :param addr: an IPv4 address, an IPv6 address, or a path beginning with ``/``.
    :param port: needed for TCP; ``None`` or 0 for a UNIX socket, which has none.
    :param lowest_port: see `parse_port`.
    :raises BadAddress: if they are not a valid address.
    """
    place = parse_place(addr)
    if not place.startswith("/"):
        if port is None:
            raise BadAddress(f"{addr} needs a port")
        return Address.tcp(place, parse_port(str(port), lowest_port))
    if port not in (None, 0, "0"):
        raise BadAddress(f"{addr} is a UNIX socket, which has no port, but the port is {port}")
    return Address.unix(place)


def parse_shown(text: str) -> Address:
    """Parse an address as this package displays it: HOST:PORT, [HOST]:PORT, or a path beginning
    with ``/``.

    :raises BadAddress: if it is none of these.
    """
    if text.startswith("/"):
        return Address.unix(parse_socket_path(text))
    host, colon, port = text.rpartition(":")
    if not colon:
        raise BadAddress(f"{text!r} is not HOST:PORT")
    return Address.tcp(parse_host(host.removeprefix("[").removesuffix("]")), parse_port(port, 1))
