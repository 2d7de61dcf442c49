"""Twisted endpoints on stream transports, made from the addresses that operators give."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.defer import fail
from twisted.internet.endpoints import (
    AdoptedStreamServerEndpoint,
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ClientEndpoint,
    TCP6ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
    serverFromString,
)
from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint

from flexmigrate.errors import UsageError
from flexmigrate.net.address import Address
from flexmigrate.net.streaming import streaming
from flexmigrate.net.unix_socket import SOCKET_MODE, remove_stale_socket


class IPv6ClientEndpoint(TCP6ClientEndpoint):
    """An endpoint that names the network interface of a link-local address if it doesn't exist.
    The resolver would only say that the name or service is not known.
    """

    def __init__(self, reactor: Any, host: str, port: int, *arguments: Any, **options: Any) -> None:
        inherited: Any = super()  # its methods have no types
        inherited.__init__(reactor, host, port, *arguments, **options)
        self._interface_name = host.partition("%")[2]

    def connect(self, protocolFactory: Any) -> Any:  # noqa: N803  # Twisted calls it so
        """Connect, as `TCP6ClientEndpoint` does; fail with OSError without the interface."""
        if self._interface_name and not self._interface_name.isdigit():
            try:
                socket.if_nametoindex(self._interface_name)
            except OSError:
                text = f"there is no network interface {self._interface_name!r}"
                return fail(MissingInterface(errno.ENODEV, text))
        inherited: Any = super()
        return inherited.connect(protocolFactory)


class MissingInterface(OSError):
    """The network interface of a link-local address doesn't exist."""

    def __str__(self) -> str:
        return str(self.strerror)


def server_endpoint(reactor: Any, address: Address | str) -> IStreamServerEndpoint:
    """Return the endpoint to listen on. The file of a UNIX socket that nobody listens on is
    removed.

    :param address: an address, or the description of any server endpoint that Twisted knows.
    :raises FlexmigrateError: the path of a UNIX socket is taken, or the description is invalid.
    """
    endpoint: Any
    if isinstance(address, str):
        endpoint = _described(reactor, address)
        if isinstance(endpoint, AdoptedStreamServerEndpoint):
            # Listening uses up a descriptor. An address that is closed for a while and opened again
            # would then adopt whatever got the same number meanwhile.
            endpoint.fileno = os.dup(endpoint.fileno)
    elif address.is_unix:
        remove_stale_socket(address.path)
        endpoint = UNIXServerEndpoint(streaming(reactor), address.path, mode=SOCKET_MODE)
    else:
        kind = TCP6ServerEndpoint if ":" in address.host else TCP4ServerEndpoint
        endpoint = kind(streaming(reactor), address.port, interface=address.host)
    result: IStreamServerEndpoint = endpoint
    return result


def check_description(reactor: Any, description: str, option: str = "--endpoint") -> None:
    """Raise UsageError unless *description*, given with *option*, describes a server endpoint."""
    _described(reactor, description, option)


def _described(reactor: Any, description: str, option: str = "--endpoint") -> Any:
    try:
        return serverFromString(streaming(reactor), description)
    except (IndexError, KeyError) as error:
        raise UsageError(
            f"{option} {description}: no such socket was passed to this process"
        ) from error
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise UsageError(f"{option} {description}: {error}") from error


def client_endpoint(
    reactor: Any, address: Address, *, bind: str | None = None, timeout: float = 30.0
) -> IStreamClientEndpoint:
    """Return the endpoint to connect to.

    :param bind: local IP address to connect from.
    :param timeout: seconds that connecting may take.
    """
    endpoint: Any
    if address.is_unix:
        endpoint = UNIXClientEndpoint(streaming(reactor), address.path, timeout=timeout)
    else:
        kind = IPv6ClientEndpoint if ":" in address.host else TCP4ClientEndpoint
        local = (bind, 0) if bind else None
        endpoint = kind(streaming(reactor), address.host, address.port, timeout, local)
    result: IStreamClientEndpoint = endpoint
    return result
