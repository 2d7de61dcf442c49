"""A listening port that accepts many connections at a time, and loses none.

An NBD server speaks first. If the kernel has completed a client's connection without having room
for it in the accept queue, the client waits for a greeting that never comes, and has no reason to
send anything itself (tcp(7), tcp_abort_on_overflow). So that queue is as long as the system allows,
also on sockets that were passed to us: see `BACKLOG`.

When the process runs out of descriptors, or the kernel out of memory, clients stay in that queue
and are accepted later. No connection is ended for it.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet import tcp
from twisted.internet.main import CONNECTION_DONE
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.net.twisted_private import peer_address

log = Logger()

BACKLOG = 65535
"""The backlog given to listen(2); net.core.somaxconn limits it (4096 since Linux 5.4). An entry
takes memory only while a client waits in it."""

ENOUGH = 2048
"""Connections that should have room in the queue: all clients of a host that has just restarted."""

ACCEPTS_A_TURN = 8
"""Connections accepted in one turn of the reactor: accepting and greeting them takes about 2 ms."""

PAUSE_SECONDS = 0.2
"""Seconds between two attempts to accept while descriptors are used up."""

# Errors that may pass.
_USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

# accept(2): these errors concern the new connection, not the listening socket.
_GONE = {
    *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT),
    *(errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
}

_CLOSED = Failure(CONNECTION_DONE)

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


def queue_length() -> int | None:
    """Return the system's limit for the accept queue, or None if it is unknown."""
    try:
        return min(int(SOMAXCONN.read_text()), BACKLOG)
    except (OSError, ValueError):
        return None


if TYPE_CHECKING:
    _Port = tcp.Port
else:
    _Port = object


class AcceptingPort(_Port):
    """A mixin for Twisted's ports, TCP and UNIX."""

    _accepting_again: Any = None  # an IDelayedCall, while descriptors are used up
    _is_short = False

    def startListening(self) -> None:
        self.backlog = BACKLOG
        super().startListening()
        # Once more for a socket that was passed to us: its creator may have asked for less.
        self.socket.listen(BACKLOG)

    def doRead(self) -> None:
        """Accept waiting connections, up to a limit: the reactor calls again for the rest."""
        for _ in range(ACCEPTS_A_TURN):
            try:
                accepted, address = self.socket.accept()
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno in _GONE:
                    continue
                self._pause(error)
                return
            self._take(accepted, address)
            if self.disconnecting or not self.connected:
                return  # because of what has come
        if self._is_short:
            self._is_short = False
            log.info("accepting connections again")

    def _take(self, accepted: socket.socket, address: Any) -> None:
        transport: Any = None
        try:
            protocol: Any = self._protocol_for(address)
            if protocol is None:
                accepted.close()
                return
            number = self.sessionno
            self.sessionno = number + 1
            make: Any = self.transport
            transport = make(accepted, protocol, address, self, number, self.reactor)
            protocol.makeConnection(transport)
        except Exception:  # noqa: BLE001  # as in a reactor: it ends this one alone
            log.failure("a new connection failed with an unexpected error")
            if transport is None:
                accepted.close()
            else:
                transport.abortConnection()

    def _protocol_for(self, address: Any) -> Any:
        if len(address) == 4 and address[3]:  # IPv6, with a scope: it's a part of the address
            host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
            address = (host, *address[1:])
        assert self.factory is not None
        return self.factory.buildProtocol(peer_address(self, address))

    def _pause(self, error: OSError) -> None:
        """Stop accepting for a while; otherwise the reactor would call again at once, forever."""
        if not self._is_short:
            self._is_short = True
            log.warn(
                "cannot accept connections: {error}; new clients wait until it is possible again",
                error=os.strerror(error.errno or errno.EIO),
            )
        self.stopReading()  # type: ignore[no-untyped-call]  # Twisted's
        reactor: Any = self.reactor
        self._accepting_again = reactor.callLater(PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._accepting_again = None
        self.startReading()  # type: ignore[no-untyped-call]  # Twisted's

    def loseConnection(self, reason: Any = _CLOSED) -> Any:
        """Stop listening, as IListeningPort's ``stopListening``."""
        if self._accepting_again is not None:
            self._accepting_again.cancel()
            self._accepting_again = None
        return super().loseConnection(reason)  # type: ignore[no-untyped-call]  # Twisted's

    stopListening = loseConnection
