"""Sending an image: holes first, then what is dirty, with many requests in flight.

The law of this file: a block's mark is cleared *before* it is read for sending, and two requests
that are in flight together never touch the same bytes, since a server may carry them out in any
order. So each walk over the image ends with waiting for all its answers before another begins.

Nothing is known here of attempts, of clients, or of when enough was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from flexmigrate.client import NBDClientProtocol
from flexmigrate.image.background import Background
from flexmigrate.image.dirty import DirtyMap
from flexmigrate.image.extents import Extent
from flexmigrate.image.file import Image
from flexmigrate.migration.plan import Rate, RateLimit
from flexmigrate.wire.constants import TransmissionFlag

# Bytes in one write request, and how many such requests may be in flight: together more than
# loopback or a gigabit link with 50 ms of delay each way need, and little enough to be sent within
# the allowed downtime.
REQUEST_SIZE = 1024 * 1024
IN_FLIGHT = 16

# Of smaller requests more may be, while they carry no more bytes: each costs a round trip.
MOST_IN_FLIGHT = 256

# What a request costs beside its bytes, in seconds: so many clean bytes between two dirty blocks as
# the link takes in that time are sent with them, rather than sending two requests.
REQUEST_SECONDS = 250e-6

# Bytes that one request may zero: aligned for any server, and answered before anybody gets
# impatient.
ZERO_SIZE = 1024 * 1024 * 1024

# Extents that are looked up in a thread in one go.
EXTENTS_AT_ONCE = 4096

# The longest that a limit is waited for before it is asked again, in seconds: it may have been
# changed, and the operator should see that.
RECHECK_SECONDS = 0.5

_ZEROES = bytes(REQUEST_SIZE)

_NO_DATA = Extent(0, 0, data=True)


class Progress:
    """What was sent so far, over all attempts of a migration.

    :ivar sent: bytes of data whose writing was answered.
    :ivar zeroed: bytes of holes whose zeroing was answered.
    :ivar pass_size: bytes that the pass under way had to send when it began; what clients change
        meanwhile is the next one's.
    :ivar changed: called at each new phase and each new pass, some of which are over sooner than
        anybody could look by a timer.
    """

    def __init__(self, now: float) -> None:
        self.sent = 0
        self.zeroed = 0
        self.rate = Rate(now)
        self.pass_size = 0
        self.changed: Callable[[], object] = _nobody_looks
        self._sent_before_pass = 0

    @property
    def pass_sent(self) -> int:
        """Bytes that the pass under way has sent."""
        return self.sent - self._sent_before_pass

    def begin_pass(self, size: int) -> None:
        """A pass begins that has *size* bytes to send."""
        self.pass_size = size
        self._sent_before_pass = self.sent
        self.changed()


def _nobody_looks() -> None:
    """Do nothing, at a change that nobody wants to know of."""


class Copier:
    """Sends one image over one connection.

    :ivar dirty: what is still to be sent, or sent again.
    """

    def __init__(
        self,
        reactor: Any,
        image: Image,
        background: Background,
        client: NBDClientProtocol,
        dirty: DirtyMap,
        limit: RateLimit,
        progress: Progress,
    ) -> None:
        self._reactor = reactor
        self._image = image
        self._background = background
        self._client = client
        self.dirty = dirty
        self._limit = limit
        self._progress = progress
        self._data = _NO_DATA
        self._in_flight = 0
        self._bytes_in_flight = 0
        self._failure: Failure | None = None
        self._waiter: Deferred[None] | None = None

    # The walks

    async def send_holes(self) -> None:
        """Make holes where the image has them, and mark everything else dirty."""
        extents = self._image.extents(0, self._image.size)
        while True:
            found: list[Extent] = await self._background.run(
                lambda: list(islice(extents, EXTENTS_AT_ONCE))
            )
            for extent in found:
                if extent.data:
                    self.dirty.mark(extent.offset, extent.length)
                else:
                    await self._send_hole(extent)
            if len(found) < EXTENTS_AT_ONCE:
                break
        await self._all_answered()

    async def send_dirty(self) -> int:
        """Walk over the image once and send what is dirty; return how many bytes that was."""
        total = at = 0
        self._data = _NO_DATA
        bridge = int(self._progress.rate.value(self._reactor.seconds()) * REQUEST_SECONDS)
        while (run := self.dirty.take(self._limit.piece(REQUEST_SIZE), at, bridge)) is not None:
            offset, length = run
            at = offset + length
            total += length
            for extent in self._extents(offset, offset + length):
                if extent.data:
                    await self._room(extent.length)
                    self._launch(self._send_data(extent.offset, extent.length), extent.length)
                else:
                    await self._send_hole(extent)
        await self._all_answered()
        return total

    def _extents(self, position: int, end: int) -> Iterator[Extent]:
        """Tell data from holes, and remember how far the data reaches.

        To find the next hole, a filesystem may look through all that lies before it: tmpfs does, so
        that asking anew for each request would take a time that grows with the square of the size.
        What has become a hole since then is sent as the zeroes that it reads as, and is marked for
        the next walk. A hole isn't remembered: what was written into it has to be sent.
        """
        while position < end:
            if not self._data.offset <= position < self._data.end:
                extent = self._image.extent_at(position)
                if extent.data:
                    self._data = extent
            else:
                extent = self._data
            stop = min(end, extent.end)
            yield Extent(position, stop - position, extent.data)
            position = stop

    async def flush(self) -> None:
        """Have all that was sent put on stable storage, where the destination knows how to."""
        if self._client.flags & TransmissionFlag.SEND_FLUSH:
            await self._client.flush()

    # One request

    async def _send_hole(self, hole: Extent) -> None:
        can_zero = self._client.flags & TransmissionFlag.SEND_WRITE_ZEROES
        most = ZERO_SIZE if can_zero else self._limit.piece(REQUEST_SIZE)
        for offset, length in _pieces(hole, most):
            carried = 0 if can_zero else length
            await self._room(carried)
            zero = self._zero if can_zero else self._write_zeroes
            self._launch(zero(offset, length), carried)

    async def _zero(self, offset: int, length: int) -> None:
        await self._client.zero(offset, length)
        self._progress.zeroed += length

    async def _write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes to a server that can't be told of them: what it holds there is unknown."""
        await self._client.write(offset, memoryview(_ZEROES)[:length])
        self._count(length)

    async def _send_data(self, offset: int, length: int) -> None:
        if not self._image.is_resident(offset, length):
            await self._background.make_resident(offset, length)
        await self._client.write_from(self._image, offset, length)
        self._count(length)

    def _count(self, length: int) -> None:
        self._progress.sent += length
        self._progress.rate.add(self._reactor.seconds(), length)

    # Many requests

    async def _room(self, length: int) -> None:
        """Wait until a request of *length* bytes may be sent: by the limit, the link, and the
        window.
        """
        self._raise_failure()
        while self._in_flight and (
            self._in_flight >= MOST_IN_FLIGHT
            or self._bytes_in_flight + length > IN_FLIGHT * REQUEST_SIZE
        ):
            await self._answered()
        if not self._client.writable:
            await self._client.when_writable()
        while delay := self._limit.delay(self._reactor.seconds()):
            await deferLater(self._reactor, min(delay, RECHECK_SECONDS))
            self._raise_failure()
        self._limit.charge(self._reactor.seconds(), length)
        self._raise_failure()

    def _launch(self, request: Any, length: int) -> None:
        """Begin a request that carries *length* bytes."""
        self._in_flight += 1
        self._bytes_in_flight += length
        Deferred.fromCoroutine(request).addErrback(self._failed).addBoth(self._ended, length)

    def _failed(self, failure: Failure) -> None:
        self._failure = self._failure or failure

    def _ended(self, _: object, length: int) -> None:
        self._in_flight -= 1
        self._bytes_in_flight -= length
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def _answered(self) -> Deferred[None]:
        """Fire at the next answer."""
        self._waiter = Deferred(self._stop_waiting)
        return self._waiter

    def _stop_waiting(self, _: Deferred[None]) -> None:
        self._waiter = None

    async def _all_answered(self) -> None:
        while self._in_flight:
            await self._answered()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self._failure.raiseException()


def _pieces(extent: Extent, size: int) -> Iterator[tuple[int, int]]:
    for offset in range(extent.offset, extent.end, size):
        yield offset, min(size, extent.end - offset)
