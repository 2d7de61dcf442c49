"""Accept connections: many at once, and none that is lost.

A server of NBD speaks first. A client whose connection the kernel has completed, but for which
there was no room in the accept queue, waits for a greeting that nobody will send, and has no reason
to send anything itself (tcp(7), tcp_abort_on_overflow). So that queue is as long as the system lets
it be, on sockets that were passed to us, too: see `BACKLOG`.

Where descriptors, or the kernel's memory, are used up, clients stay in that queue, and are accepted
once there is something again: nothing is ended for it.
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
"""What listen(2) is asked for; net.core.somaxconn decides (4096 since Linux 5.4). An entry takes
memory only while a client waits in it."""

ENOUGH = 2048
"""Connections that may wait to be accepted: all the clients of a host that has just come back."""

ACCEPTS_A_TURN = 8
"""After so many others have theirs: to accept and greet that many takes two milliseconds."""

PAUSE_SECONDS = 0.2
"""Between two tries, where descriptors are used up."""

# There may be something again later.
_USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

# accept(2): the connection, not the socket that listens, has met an error.
_GONE = {
    *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT),
    *(errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
}

_CLOSED = Failure(CONNECTION_DONE)

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")


def queue_length() -> int | None:
    """Return how many connections may wait to be accepted, or None if the system doesn't tell."""
    try:
        return min(int(SOMAXCONN.read_text()), BACKLOG)
    except (OSError, ValueError):
        return None


if TYPE_CHECKING:
    _Port = tcp.Port
else:
    _Port = object


class AcceptingPort(_Port):
    """Mixed into Twisted's ports, TCP and UNIX."""

    _accepting_again: Any = None  # an IDelayedCall, while descriptors are used up
    _is_short = False

    def startListening(self) -> None:
        self.backlog = BACKLOG
        super().startListening()
        # Again, for a socket that was passed to us: who opened it may have asked for less.
        self.socket.listen(BACKLOG)

    def doRead(self) -> None:
        """Accept those who wait, a limited number of them: the reactor calls again."""
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
            log.info("connections are accepted again")

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
            log.failure("a new connection met a bug")
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
        """Let those who wait do so for a while: the reactor would call again at once, for ever."""
        if not self._is_short:
            self._is_short = True
            log.warn(
                "no connection can be accepted: {error}; those who come wait until one can",
                error=os.strerror(error.errno or errno.EIO),
            )
        self.stopReading()  # type: ignore[no-untyped-call]  # Twisted's
        reactor: Any = self.reactor
        self._accepting_again = reactor.callLater(PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._accepting_again = None
        self.startReading()  # type: ignore[no-untyped-call]  # Twisted's

    def loseConnection(self, reason: Any = _CLOSED) -> Any:
        """As IListeningPort's ``stopListening``."""
        if self._accepting_again is not None:
            self._accepting_again.cancel()
            self._accepting_again = None
        return super().loseConnection(reason)  # type: ignore[no-untyped-call]  # Twisted's

    stopListening = loseConnection
