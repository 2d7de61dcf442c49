"""Several connections to one export, used as one, for links that one TCP connection doesn't fill.

They are used only with an export that advertises CAN_MULTI_CONN: a flush on any connection then
covers all writes that were answered on any of them (proto.md, "Transmission flags"). Requests in
flight may be carried out in any order, as on a single connection.

If any connection ends, all of them end.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.client.connection import NBDClientProtocol
from flexmigrate.errors import ConnectionGone, RemoteProtocolError
from flexmigrate.net.sendable import FileSource
from flexmigrate.wire.constants import TransmissionFlag


class Carrier(Protocol):
    """The interface to send data with: an :class:`NBDClientProtocol` or a :class:`Bundle`."""

    @property
    def flags(self) -> TransmissionFlag:
        """The features of the export, as the server advertises them."""

    @property
    def writable(self) -> bool:
        """Whether another request can leave this process now."""

    @property
    def requests_in_flight(self) -> int:
        """The number of requests sent and not answered."""

    @property
    def last_progress(self) -> float:
        """Time of the last byte that came in or left, by the connections' clock, in seconds."""

    def when_writable(self) -> Deferred[None]:
        """Return a Deferred that fires once another request can leave this process."""

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> Deferred[None]:
        """Write *data*."""

    def write_from(self, source: FileSource, offset: int, length: int) -> Deferred[None]:
        """Write what *source* has at the same offset."""

    def zero(self, offset: int, length: int) -> Deferred[None]:
        """Make a range read as zeroes."""

    def flush(self) -> Deferred[None]:
        """Have everything that was answered put on stable storage."""


class Bundle:
    """A first connection, which the caller has to end, and others that join it; see
    :class:`Carrier`.

    Nothing waits for the others: data goes over the connections that exist.
    """

    def __init__(self, first: NBDClientProtocol, about: object = None) -> None:
        self._first = first
        self._log = Logger(source=about)
        self._all = [first]
        self._takes_others = True
        self._expected: set[Deferred[NBDClientProtocol]] = set()
        self._waiter: Deferred[None] | None = None
        self._waited_for: set[NBDClientProtocol] = set()
        first.when_closed().addCallback(self._first_closed)

    # The connections

    def expect(self, dialled: Deferred[NBDClientProtocol]) -> None:
        """Use another connection to the same export once it is there; a failure to connect is
        ignored.
        """
        self._expected.add(dialled)
        dialled.addCallback(self._join).addErrback(self._not_joined)
        dialled.addBoth(lambda _: self._expected.discard(dialled))

    def dismiss_others(self) -> None:
        """End all connections but the first; nothing may be in flight on them."""
        others, self._all = self._all[1:], [self._first]
        for other in others:
            other.disconnect().addErrback(lambda _: None)  # it is of no use any more
        self._expect_nobody()

    def _join(self, other: NBDClientProtocol) -> None:
        if not self._takes_others:
            other.abort(ConnectionGone("it comes too late"))
            return
        if other.size != self._first.size or other.flags != self._first.flags:
            other.abort(ConnectionGone("it isn't needed"))
            raise RemoteProtocolError("the server describes its export differently each time")
        self._all.append(other)
        self._log.info("{number} connections are used", number=len(self._all))
        other.when_closed().addCallback(self._other_closed, other)
        self._proceed()

    def _not_joined(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.info("one connection is missing: {error}", error=failure.getErrorMessage())

    def _first_closed(self, _: None) -> None:
        self._expect_nobody()
        others, self._all = self._all[1:], [self._first]
        for other in others:
            other.abort(ConnectionGone("the first connection has ended"))

    def _other_closed(self, _: None, other: NBDClientProtocol) -> None:
        if other in self._all:
            self._all.remove(other)
            reason = other.failure or "the server closed it"
            self._first.abort(ConnectionGone(f"one of several connections has ended: {reason}"))

    def _expect_nobody(self) -> None:
        self._takes_others = False
        for dialled in list(self._expected):
            dialled.cancel()

    # What they are used for

    @property
    def flags(self) -> TransmissionFlag:
        """The features of the export, the same on all connections."""
        return self._first.flags

    @property
    def writable(self) -> bool:
        """Whether any connection is writable."""
        return any(each.writable for each in self._all)

    @property
    def requests_in_flight(self) -> int:
        """The number of requests in flight on all connections."""
        return sum(each.requests_in_flight for each in self._all)

    @property
    def last_progress(self) -> float:
        """The oldest time of progress among connections with requests in flight: one of them may
        have stalled while the others go on.
        """
        busy = [each.last_progress for each in self._all if each.requests_in_flight]
        return min(busy, default=self._first.last_progress)

    def when_writable(self) -> Deferred[None]:
        """Fire once any connection is writable; fail if one ends before. For one caller at a
        time.
        """
        if self.writable:
            return succeed(None)
        waiter = self._waiter = Deferred()
        for each in self._all:
            if each not in self._waited_for:
                self._waited_for.add(each)
                each.when_writable().addCallbacks(
                    *(self._writable_again, self._never_writable),
                    callbackArgs=(each,),
                    errbackArgs=(each,),
                )
        return waiter

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> Deferred[None]:
        """Write *data* on the connection with the fewest requests."""
        return self._idlest().write(data, offset)

    def write_from(self, source: FileSource, offset: int, length: int) -> Deferred[None]:
        """Write from *source* on the connection with the fewest requests."""
        return self._idlest().write_from(source, offset, length)

    def zero(self, offset: int, length: int) -> Deferred[None]:
        """Zero a range on the connection with the fewest requests."""
        return self._idlest().zero(offset, length)

    def flush(self) -> Deferred[None]:
        """Flush everything that was answered on any connection."""
        return self._first.flush()

    def _idlest(self) -> NBDClientProtocol:
        if len(self._all) == 1:
            return self._first
        ready = [each for each in self._all if each.writable] or self._all
        return min(ready, key=_in_flight)

    def _writable_again(self, _: None, which: NBDClientProtocol) -> None:
        self._waited_for.discard(which)
        self._proceed()

    def _never_writable(self, failure: Failure, which: NBDClientProtocol) -> None:
        self._waited_for.discard(which)
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.errback(failure)

    def _proceed(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)


def _in_flight(client: NBDClientProtocol) -> int:
    return client.requests_in_flight
