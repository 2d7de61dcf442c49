"""Reactors, ports and connectors that make stream transports (``net.stream``).

``streaming(reactor)`` returns a reactor whose ``listenTCP``, ``connectTCP``, ``listenUNIX``,
``connectUNIX`` and ``adoptStreamPort`` make stream transports, so that every Twisted endpoint built
on it (``serverFromString``, ``HostnameEndpoint``, …) does, too.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.interfaces import IReactorFDSet
from zope.interface import directlyProvides, providedBy

from flexmigrate.net.accepting import AcceptingPort
from flexmigrate.net.readers import Readers
from flexmigrate.net.stream import StreamTransport
from flexmigrate.net.twisted_private import (
    TCPConnector,
    UNIXConnector,
    adopt_tcp_port,
)
from flexmigrate.net.unix_socket import OwnedPort


class _StreamServer(StreamTransport, tcp.Server):
    """A TCP connection that a port accepted."""


class _StreamClient(StreamTransport, tcp.Client):
    """A TCP connection that we opened."""


class _StreamUNIXServer(StreamTransport, unix.Server):
    """A UNIX socket's connection that a port accepted."""


class _StreamUNIXClient(StreamTransport, unix.Client):
    """A UNIX socket's connection that we opened."""


class _StreamPort(AcceptingPort, tcp.Port):
    transport = _StreamServer


class _StreamUNIXPort(OwnedPort):
    transport = _StreamUNIXServer


class _StreamConnector(TCPConnector):
    def make_transport(self) -> tcp.Client:
        return _StreamClient(self.host, self.port, self.bindAddress, self, self.reactor)


class _StreamUNIXConnector(UNIXConnector):
    def make_transport(self) -> unix.Client:
        return _StreamUNIXClient(self.address, self, self.reactor, self.checkPID)


class _StreamReactor:
    """A proxy of a reactor. It replaces the five methods that make sockets, and the two that
    register readers; see :func:`streaming`.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._readers = Readers(reactor)
        directlyProvides(self, providedBy(reactor))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def addReader(self, reader: Any) -> None:
        """Add a reader, as IReactorFDSet's ``addReader``."""
        # A connecting socket is told of a failure only if it waits for both events.
        if isinstance(reader, StreamTransport) and not reader.is_connecting:
            self._readers.add(reader)
        else:
            self._reactor.addReader(reader)

    def removeReader(self, reader: Any) -> None:
        """Remove a reader, as IReactorFDSet's ``removeReader``."""
        if isinstance(reader, StreamTransport):
            self._readers.remove(reader)
        self._reactor.removeReader(reader)

    def listenTCP(
        self, port: int, factory: Any, backlog: int = 50, interface: str = ""
    ) -> tcp.Port:
        listening = _StreamPort(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> tcp.Port:
        listening: tcp.Port
        if addressFamily == socket.AF_UNIX:
            listening = _StreamUNIXPort.adopt(self, fileDescriptor, factory)
        else:
            listening = adopt_tcp_port(_StreamPort, self, fileDescriptor, addressFamily, factory)
        listening.startListening()
        return listening

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: Any = None,
    ) -> tcp.Connector:
        connector = _StreamConnector(host, port, factory, timeout, bindAddress, self)
        connector.connect()
        return connector

    def listenUNIX(
        self,
        address: str,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> unix.Port:
        listening = _StreamUNIXPort(os.fsencode(address), factory, backlog, mode, self, wantPID)
        listening.startListening()
        return listening

    def connectUNIX(
        self, address: str, factory: Any, timeout: float = 30, checkPID: bool = False
    ) -> unix.Connector:
        connector = _StreamUNIXConnector(address, factory, timeout, self, checkPID)  # type: ignore[no-untyped-call]  # Twisted's
        connector.connect()
        return connector


def streaming(reactor: Any) -> Any:
    """Return a reactor that makes stream transports, or *reactor* itself if it has no file
    descriptors.
    """
    return _StreamReactor(reactor) if IReactorFDSet.providedBy(reactor) else reactor
