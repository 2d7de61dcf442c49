"""Many sockets that are read from, as one to the reactor.

A reactor calls each of its descriptors through a logging context of its own, which takes longer
than to answer a small request. Here they stand in an epoll of their own, whose descriptor is the
one that the reactor knows: it calls once, and all that are readable have their turn.
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

# How many have their turn before the reactor looks at its clock and at what else it has.
MOST_AT_ONCE = 64


@implementer(IReadDescriptor)
class Readers:
    """The sockets, for one reactor; it is among the reactor's own while it has any.

    :param reactor: provides IReactorFDSet.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._readers: dict[int, Any] = {}
        self._epoll: select.epoll | None = None

    def add(self, reader: Any) -> None:
        """Call its ``doRead`` whenever there is something; twice is allowed."""
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
        """Don't call it any more, if it was added; its descriptor is still open."""
        fd = reader.fileno()
        if self._epoll is not None and self._readers.get(fd) is reader:
            del self._readers[fd]
            self._epoll.unregister(fd)
            if not self._readers:
                self._reactor.removeReader(self)

    # What the reactor calls

    def doRead(self) -> None:
        """Give all that are readable their turn."""
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0, MOST_AT_ONCE):
            reader = self._readers.get(fd)
            if reader is None:
                continue  # it was ended in another one's turn
            try:
                why = reader.doRead()
                if why is not None:
                    self._end(reader, why)
            except Exception as error:  # noqa: BLE001  # as in a reactor: it ends this one alone
                log.failure("a connection met a bug")
                self._end(reader, error)

    def _end(self, reader: Any, why: BaseException) -> None:
        """Tell a socket that it can't be read from any more, as a reactor does."""
        self.remove(reader)
        reason = Failure(why)
        if isinstance(why, ConnectionDone) and IHalfCloseableDescriptor.providedBy(reader):
            reader.readConnectionLost(reason)
        else:
            self._reactor.removeWriter(reader)
            reader.connectionLost(reason)

    def fileno(self) -> int:
        """As IFileDescriptor has it."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """As ILoggingContext has it."""
        return "stream transports"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops: so do they all, as if it had known them."""
        for reader in list(self._readers.values()):
            self.remove(reader)
            try:
                reader.connectionLost(reason)
            except Exception:  # noqa: BLE001  # the others are to be told all the same
                log.failure("a connection met a bug")
