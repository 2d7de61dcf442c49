"""Many readable sockets behind one descriptor of the reactor.

A reactor calls each of its descriptors through a logging context, which takes longer than to answer
a small request. Here the sockets are in a separate epoll, whose descriptor is the only one that the
reactor knows: it calls once, and all readable sockets are served.
"""

from __future__ import annotations

import select
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableDescriptor, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

log = Logger()

# Sockets that are served before the reactor looks at its clock and its other descriptors.
MOST_AT_ONCE = 64


@implementer(IReadDescriptor)
class Readers:
    """The sockets of one reactor. It is registered with the reactor while it has any.

    :param reactor: provides IReactorFDSet.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._readers: dict[int, Any] = {}
        self._epoll: select.epoll | None = None

    def add(self, reader: Any) -> None:
        """Call the reader's ``doRead`` whenever it is readable; repeated calls have no effect."""
        fd = reader.fileno()
        if self._readers.get(fd) is reader:
            return
        if self._epoll is None:
            self._epoll = select.epoll()  # late, since a daemon forks
        if not self._readers:
            self._reactor.addReader(self)
        self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = reader

    def remove(self, reader: Any) -> None:
        """Stop calling the reader, if it was added; its descriptor is still open."""
        fd = reader.fileno()
        if self._epoll is not None and self._readers.get(fd) is reader:
            del self._readers[fd]
            self._epoll.unregister(fd)
            if not self._readers:
                self._reactor.removeReader(self)

    # Called by the reactor

    def doRead(self) -> None:
        """Serve all readable sockets."""
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0, MOST_AT_ONCE):
            reader = self._readers.get(fd)
            if reader is None:
                continue  # ended during another one's turn
            try:
                why = reader.doRead()
                if why is not None:
                    self._end(reader, why)
            except Exception as error:  # noqa: BLE001  # as in a reactor: it ends this one alone
                log.failure("a connection failed with an unexpected error")
                self._end(reader, error)

    def _end(self, reader: Any, why: BaseException) -> None:
        """Tell a reader that its socket can't be read from any more, as a reactor does."""
        self.remove(reader)
        reason = Failure(why)
        if isinstance(why, ConnectionDone) and IHalfCloseableDescriptor.providedBy(reader):
            reader.readConnectionLost(reason)
        else:
            self._reactor.removeWriter(reader)
            reader.connectionLost(reason)

    def fileno(self) -> int:
        """Return the descriptor, as IFileDescriptor demands."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Return the prefix of log lines, as ILoggingContext demands."""
        return "stream transports"

    def connectionLost(self, reason: Failure) -> None:
        """Tell every reader that the reactor stops, as if the reactor had known them."""
        for reader in list(self._readers.values()):
            self.remove(reader)
            try:
                reader.connectionLost(reason)
            except Exception:  # noqa: BLE001  # the others must be told, too
                log.failure("a connection failed with an unexpected error")
