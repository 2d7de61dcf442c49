"""The factory of a server's connections: it decides which clients may connect, and how many.

What a connection *means* is the session policy's: a plain server lets clients come and go, a
destination takes one sender and decides at its DISC who owns the image.
"""

from __future__ import annotations

import ipaddress
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import ServerFactory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from flexmigrate.errors import UsageError, check_type
from flexmigrate.net.acl import AccessList
from flexmigrate.net.polling import Poller
from flexmigrate.server.connection import NBDServerProtocol
from flexmigrate.server.export import Export, ExportDirectory
from flexmigrate.server.limits import Limits
from flexmigrate.server.transmission import Scratch, Transmission
from flexmigrate.wire.agreement import TLSMode
from flexmigrate.wire.constants import ServerRole
from flexmigrate.wire.handshake import (
    HandshakeStyle,
    PrivateOption,
    RefusingHandshake,
    ServerHandshake,
)

log = Logger()


TICK_SECONDS = 1.0

MOST_TOLD = 64
"""Connections beside which one more is told why it isn't let in; beyond, it is dropped."""

# Who has one address of IPv6 usually has all that share its first 64 bits (RFC 4291, 2.5.4).
_IPV6_NETWORK_BITS = 64


class Session(Protocol):
    """The server's interest in its connections.

    :cvar tells_refusals: whether who isn't let in is told why, where the handshake can say so: the
        operator of a source reads it, and clients of a server are only dropped.
    :cvar role: what the server says of itself in the oldstyle greeting.
    """

    tells_refusals: bool
    role: ServerRole

    def admits(self, host: str | None) -> str | None:
        """Return why a connection from *host* (None: a UNIX socket) isn't wanted now, or None if
        it is.
        """

    def connected(self, connection: NBDServerProtocol) -> None:
        """A connection was admitted."""

    def options(self) -> Mapping[int, PrivateOption]:
        """Return the options of our own that a connection may negotiate."""

    def gate(self, export: str, private: Mapping[int, bytes]) -> str | None:
        """Return why a connection that negotiated *private* may not reach *export*, or None."""

    def transmitting(self, connection: NBDServerProtocol) -> Deferred[None] | None:
        """It reached an export; its requests wait until what is returned has fired."""

    def private(
        self,
        connection: NBDServerProtocol,
        command: int,
        offset: int,
        length: int,
        payload: bytes,
    ) -> Deferred[bytes] | None:
        """It sent a command that isn't the specification's: return what the reply will carry, or
        None if there is no such command. RequestFailed has the error that it is answered with.
        """

    def disconnecting(self, connection: NBDServerProtocol) -> Deferred[bool]:
        """It said DISC, all before it is done; fire True to close it, False to reset it."""

    def lost(self, connection: NBDServerProtocol) -> None:
        """It is gone, for whatever reason."""


class OpenSession:
    """Clients come and go as they like."""

    tells_refusals = False
    role = ServerRole.UNKNOWN

    def admits(self, host: str | None) -> str | None:
        """Everybody is welcome."""
        return None

    def connected(self, connection: NBDServerProtocol) -> None:
        """Nothing depends on it."""

    def options(self) -> Mapping[int, PrivateOption]:
        """There are none."""
        return {}

    def gate(self, export: str, private: Mapping[int, bytes]) -> str | None:
        """Every export is open."""
        return None

    def transmitting(self, connection: NBDServerProtocol) -> Deferred[None] | None:
        """Nothing depends on it."""
        return None

    def private(
        self,
        connection: NBDServerProtocol,
        command: int,
        offset: int,
        length: int,
        payload: bytes,
    ) -> Deferred[bytes] | None:
        """There is none."""
        return None

    def disconnecting(self, connection: NBDServerProtocol) -> Deferred[bool]:
        """A client that says DISC is done."""
        return succeed(True)

    def lost(self, connection: NBDServerProtocol) -> None:
        """Nothing depends on it."""


class NBDServerFactory(ServerFactory):
    """Makes a connection of each client that may have one.

    :ivar exports: what is offered.
    :ivar acl: who may connect; see ``set_acl``.
    :ivar clients: the connections that stand.
    :ivar transmission: makes what carries out a client's requests, once for each connection.
    :param tls: whether TLS is offered, or required; then *tls_context* is what ``startTLS`` takes.
    :raises UsageError: an argument is of another type, or TLS lacks its *tls_context*.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        exports: ExportDirectory,
        acl: AccessList,
        *,
        session: Session | None = None,
        style: HandshakeStyle = HandshakeStyle.FIXED_NEWSTYLE,
        default_export: str = "",
        tls: TLSMode = TLSMode.OFF,
        tls_context: Any = None,
        limits: Limits | None = None,
        poller: Poller | None = None,
        transmission: Callable[..., Transmission] = Transmission,
    ) -> None:
        check_type("style", style, HandshakeStyle)
        check_type("default_export", default_export, str)
        check_type("tls", tls, TLSMode)
        check_type("limits", limits, Limits, type(None))
        check_type("poller", poller, Poller, type(None))
        if tls is not TLSMode.OFF and tls_context is None:
            raise UsageError(f"tls_context=None: TLS {tls.value!r} needs certificates")
        self.reactor = reactor
        self.exports = exports
        self.acl = acl
        self.session: Session = session or OpenSession()
        self.limits = limits or Limits()
        self.scratch = Scratch()
        self.poller = poller
        self.transmission = transmission
        self.clients: set[NBDServerProtocol] = set()
        self._style = style
        self._default_export = default_export
        self._tls = tls
        self._tls_context = tls_context
        self._numbers = itertools.count(1)
        self._hosts: dict[NBDServerProtocol, str | None] = {}
        self._of_host: Counter[str] = Counter()  # its connections, by what `host_of` returns
        self._going: list[tuple[Export | None, Deferred[None]]] = []
        self._killswitch = LoopingCall(self._tick)
        self._killswitch.clock = reactor

    def doStart(self) -> None:
        """Called by Twisted with the first port that listens."""
        super().doStart()  # type: ignore[no-untyped-call]  # Twisted's
        if self.limits.request_seconds is not None and not self._killswitch.running:
            self._killswitch.start(TICK_SECONDS, now=False)

    def doStop(self) -> None:
        """Called by Twisted with the last port that stops; connections go on."""
        super().doStop()  # type: ignore[no-untyped-call]  # Twisted's
        self._stop_killswitch_if_unused()

    def _stop_killswitch_if_unused(self) -> None:
        if not self.numPorts and not self.clients and self._killswitch.running:
            self._killswitch.stop()

    def buildProtocol(self, addr: Any) -> Any:
        """Return a connection, or None (it is closed before a byte is sent) with the reason in
        the log. A destination says the reason in the handshake, unless it is busy.
        """
        host = None if isinstance(addr, UNIXAddress) else getattr(addr, "host", None)
        refusal = self._refusal(host) or self.session.admits(host)
        if refusal is not None:
            log.warn("refused a connection from {host}: {refusal}", host=host, refusal=refusal)
            if not self._tells_refusals:
                return None
            handshake: ServerHandshake = RefusingHandshake(
                self.exports, f"{host or 'this host'} is refused: {refusal}"
            )
        else:
            handshake = ServerHandshake(
                self.exports,
                style=self._style,
                tls=self._tls,
                default_export=self._default_export,
                private_options=self.session.options(),
                gate=self.session.gate,
                role=self.session.role,
            )
        connection = NBDServerProtocol(self, next(self._numbers), handshake, _shown(addr))
        self._hosts[connection] = host
        connection.log.info("connected from {host}", host=host or "a UNIX socket")
        return connection

    @property
    def _tells_refusals(self) -> bool:
        is_newstyle = self._style is HandshakeStyle.FIXED_NEWSTYLE
        few = len(self.clients) < min(MOST_TOLD, self.limits.clients)
        return self.session.tells_refusals and is_newstyle and few

    def _refusal(self, host: str | None) -> str | None:
        if not self.acl.allows(host):
            return "the access list doesn't allow it"
        if len(self.clients) >= self.limits.clients:
            return f"{self.limits.clients} clients are connected already"
        if host is not None and self._of_host[host_of(host)] >= self.limits.clients_of_one_host:
            most = self.limits.clients_of_one_host
            return f"{most} clients of that host are connected already"
        return None

    def set_acl(self, acl: AccessList) -> None:
        """Change who may connect; who may no longer, and is connected, is closed at once."""
        self.acl = acl
        for connection in list(self.clients):
            if not acl.allows(self._hosts[connection]):
                connection.abort("the access list doesn't allow it any more")

    def start_tls(self, transport: Any) -> None:
        """Begin TLS on *transport*, as its negotiation agreed."""
        transport.startTLS(self._tls_context)

    def close_clients(self, reason: str, export: Export | None = None) -> Deferred[None]:
        """Close every connection; fire when all are gone. Who doesn't read what is left is cut off.

        :param export: close, and wait for, only its clients.
        """
        for connection in self._clients_of(export):
            connection.end(reason)
        gone: Deferred[None] = Deferred()
        self._going.append((export, gone))
        self._tell_who_is_gone()
        return gone

    def _clients_of(self, export: Export | None) -> list[NBDServerProtocol]:
        return [each for each in self.clients if export is None or each.export is export]

    def _tell_who_is_gone(self) -> None:
        going, self._going = self._going, []
        for export, gone in going:
            if self._clients_of(export):
                self._going.append((export, gone))
            else:
                gone.callback(None)

    # What connections tell

    def connected(self, connection: NBDServerProtocol) -> None:
        """Called by a connection once it stands."""
        self.clients.add(connection)
        host = self._hosts[connection]
        if host is not None:
            self._of_host[host_of(host)] += 1
        self.session.connected(connection)

    def lost(self, connection: NBDServerProtocol) -> None:
        """Called by a connection that is gone."""
        host = self._hosts.pop(connection, None)
        if connection in self.clients:
            self.clients.remove(connection)
            self._count_off(host)
        self.session.lost(connection)
        if not self.clients:
            self._stop_killswitch_if_unused()
        self._tell_who_is_gone()

    def _count_off(self, host: str | None) -> None:
        if host is not None:
            counted_as = host_of(host)
            self._of_host[counted_as] -= 1
            if not self._of_host[counted_as]:
                del self._of_host[counted_as]

    def _tick(self) -> None:
        limit = self.limits.request_seconds
        for connection in list(self.clients):
            if limit is not None and connection.tick() * TICK_SECONDS > limit:
                connection.abort(f"a request wasn't complete after {limit:.0f} s")


def host_of(address: str) -> str:
    """Return what the host of an IP *address* is counted by: the address, or a network of IPv6."""
    if ":" not in address:
        return address
    try:
        network = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if network.ipv4_mapped is not None:
        return str(network.ipv4_mapped)
    return str(ipaddress.IPv6Network((network, _IPV6_NETWORK_BITS), strict=False))


def _shown(address: Any) -> str:
    """Return the address of a client as logs have it."""
    host = getattr(address, "host", None)
    if host is None:
        return "unix"
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
