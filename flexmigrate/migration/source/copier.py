"""Transfer of an image: holes first, then dirty blocks, with many requests in flight.

A block's mark is cleared *before* it is read for sending, and two requests
that are in flight together never touch the same bytes, since a server may carry them out in any
order. So each walk over the image ends with waiting for all its answers before another begins.

Attempts, clients, and the end of the transfer are managed elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from flexmigrate.client.bundle import Carrier
from flexmigrate.image.extents import Extent
from flexmigrate.image.storage import Sendable, Storage
from flexmigrate.migration.dirty_map import DirtyMap
from flexmigrate.migration.extent_lookup import ExtentLookup
from flexmigrate.migration.source.cache_advice import CacheAdvice
from flexmigrate.migration.source.progress import Progress, _nobody_looks
from flexmigrate.migration.source.rate import RateLimit
from flexmigrate.wire.constants import TransmissionFlag

# Bytes in one write request, and how many such requests may be unanswered. That is no memory: a
# request is sent when the socket takes it, by sendfile, so TCP decides how much is under way, which
# knows the link. This only has not to stand in its way: as much as 5 Gbit/s carry in 100 ms.
REQUEST_SIZE = 1024 * 1024
IN_FLIGHT = 64

# Of smaller requests more may be, while they carry no more bytes: each costs a round trip. And a
# kilobyte of Python's objects.
MOST_IN_FLIGHT = 2048

# What isn't in memory is read by so many threads at once: clients whose reads wait for the disk,
# too, need the others.
MOST_READING = 4

# What a request costs beside its bytes, in seconds: so many clean bytes between two dirty blocks as
# the link takes in that time are sent with them, rather than sending two requests.
REQUEST_SECONDS = 250e-6

# Who sends at this part of what may be sent is held up by the limit, not by requests.
AT_THE_LIMIT = 0.9

# For how long requests may be launched, in seconds, before clients have their turn: what a batch of
# theirs takes. Thousands of small requests at once would be a pause that clients notice.
SLICE_SECONDS = 200e-6

# Then clients have so much more time than that was, if they want it: answers of the destination
# come in their time, too, and they are to keep half of their speed.
CLIENTS_SHARE = 1.5

# One request may take longer than a slice; what is owed for more than this was spent waiting.
MOST_OWED_SECONDS = 4 * SLICE_SECONDS

# Bytes that one request may zero: aligned for any server, and answered before anybody gets
# impatient.
ZERO_SIZE = 1024 * 1024 * 1024

# Data between two holes is zeroed with them, before it is sent, where the holes are so many times
# as long: a request for each hole costs more than that, even where zeroes have to be written.
MOSTLY_HOLE = 8

# Extents that are looked up in a thread in one go.
EXTENTS_AT_ONCE = 4096

# The longest that a limit is waited for before it is asked again, in seconds: it may have been
# changed, and the operator should see that.
RECHECK_SECONDS = 0.5

_ZEROES = bytes(REQUEST_SIZE)


def _nobody_asks(offset: int, length: int) -> None:
    """Do nothing, about what is sent and not compared later."""


def _never() -> int:
    """Tell that no client has ever had a turn."""
    return 0


class Holes:
    """Joins holes that have little data between them, as they are added: ascending.

    :param mostly: how many times as long as that data they have to be; None: joins none.
    :ivar last: the last one, to which more may be joined.
    """

    def __init__(self, mostly: int | None) -> None:
        self._mostly = mostly
        self._between = 0  # bytes of data in the last one
        self.last: Extent | None = None

    def add(self, hole: Extent) -> Extent | None:
        """Add *hole*; return one that is complete, if that makes it so."""
        last = self.last
        if last is not None and self._mostly is not None:
            between = self._between + hole.offset - last.end
            joined = hole.end - last.offset
            if between * self._mostly <= joined - between:
                self._between = between
                self.last = Extent(last.offset, joined, data=False)
                return None
        self._between = 0
        self.last = hole
        return last


class Copier:
    """The transfer of one image over one connection.

    :param drop_cache: whether sent data is dropped from the page cache.
    :param clients_turns: returns the number of turns that clients have had; while it doesn't
        change, nobody waits for one.
    :ivar dirty: the map of blocks to send, or to send again.
    :ivar sending: called with each (offset, length) of dirty blocks that is taken to be sent.
    :ivar advanced: called at each answer: ``reached`` may have moved.
    """

    def __init__(
        self,
        reactor: Any,
        storage: Storage,
        client: Carrier,
        dirty: DirtyMap,
        limit: RateLimit,
        progress: Progress,
        drop_cache: bool = False,
        clients_turns: Callable[[], int] = _never,
    ) -> None:
        self._reactor = reactor
        self._clients_turns = clients_turns
        self._storage = storage
        self._drop_cache = drop_cache
        self._advice = CacheAdvice(storage, dirty, REQUEST_SIZE)
        self._client = client
        self.dirty = dirty
        self._limit = limit
        self._progress = progress
        self.sending: Callable[[int, int], object] = _nobody_asks
        self.advanced: Callable[[], object] = _nobody_looks
        self._walked = 0
        self._unanswered: dict[int, None] = {}  # where they begin, in the order of the walk
        self._lookup = ExtentLookup(storage.fast)
        self._bytes_in_flight = 0
        self._reading = 0
        self._is_flushed = False
        self._slice_ends = 0.0
        self._failure: Failure | None = None
        self._waiter: Deferred[None] | None = None

    @property
    def reached(self) -> int:
        """The offset, in bytes, that the current pass has reached: nothing before it will be sent
        by this pass any more, and everything that was sent is answered.
        """
        return next(iter(self._unanswered), self._walked)

    def give_up(self, failure: Failure) -> None:
        """End the current pass with *failure*: there is no use in sending any more."""
        self._failure = self._failure or failure
        self._wake()

    # The walks

    async def send_holes(self) -> None:
        """Make holes where the image has them, and mark everything else dirty."""
        at, size = 0, self._storage.size
        can_zero = self._client.flags & TransmissionFlag.SEND_WRITE_ZEROES
        holes = Holes(MOSTLY_HOLE if can_zero else None)
        while at < size:
            found = await self._storage.extents(at, size - at, EXTENTS_AT_ONCE)
            at = found[-1].end
            for extent in found:
                if extent.data:
                    self.dirty.mark(extent.offset, extent.length)
                elif (hole := holes.add(extent)) is not None:
                    await self._send_hole(hole)
        if holes.last is not None:
            await self._send_hole(holes.last)
        await self._all_answered()

    async def send_dirty(self, enough: Callable[[], bool] = lambda: False) -> int:
        """Walk over the image once and send what is dirty; return how many bytes that was.

        :param enough: asked after each piece; True ends the walk where it is.
        """
        total = at = self._walked = 0
        self._lookup.forget()
        self._advice.begin_pass()
        bridge = self._bridge()
        # The last block may end behind the image: it isn't to be taken, and be in flight, twice.
        while at < self._storage.size:
            run = self.dirty.take(self._limit.piece(REQUEST_SIZE), at, bridge)
            if run is None:
                break
            offset, length = run
            self._walked = offset
            at = offset + length
            total += length
            self.sending(offset, length)
            for extent in self._lookup.within(offset, offset + length):
                if extent.data:
                    if not self._is_room(extent.length):
                        await self._room(extent.length)
                    answer = self._send_data(extent.offset, extent.length)
                    if self._drop_cache:
                        answer.addCallback(self._advice.sent, extent.offset, extent.length)
                    self._launch(answer, extent.offset, extent.length)
                else:
                    await self._send_hole(extent)
            self._walked = at
            if enough():
                break
        await self._all_answered()
        self._advice.drop()
        return total

    def _bridge(self) -> int:
        """Return how many clean bytes cost less than another request."""
        rate = self._progress.rate.value(self._reactor.seconds())
        limit = self._limit.bytes_per_second
        if limit and rate >= AT_THE_LIMIT * limit:
            return 0  # a byte more is one that isn't sent, and there is time for requests
        return int(rate * REQUEST_SECONDS)

    async def flush(self, *, again: bool = False) -> bool:
        """Have all that was sent put on stable storage, where the destination knows how to; return
        whether it was asked to.

        Where nothing was sent since that was last done, it isn't asked again: that saves parked
        clients a round trip.

        :param again: ask all the same, to see how long it takes.
        """
        if self._is_flushed and not again:
            return False
        self._is_flushed = True
        if not self._client.flags & TransmissionFlag.SEND_FLUSH:
            return False
        await self._client.flush()
        return True

    # One request

    async def _send_hole(self, hole: Extent) -> None:
        can_zero = self._client.flags & TransmissionFlag.SEND_WRITE_ZEROES
        most = ZERO_SIZE if can_zero else self._limit.piece(REQUEST_SIZE)
        for offset, length in _pieces(hole, most):
            carried = 0 if can_zero else length
            if not self._is_room(carried):
                await self._room(carried)
            if can_zero:
                self._launch(self._client.zero(offset, length), offset, 0, zeroed=length)
            else:
                # What such a server holds there is unknown.
                zeroes = memoryview(_ZEROES)[:length]
                self._launch(self._client.write(zeroes, offset), offset, length)

    def _send_data(self, offset: int, length: int) -> Deferred[None]:
        ready = self._storage.ready(offset, length, whole=True)
        if ready is None or self._advice.told:
            # From the first that isn't on: the disk has to be busy while what it brought is sent.
            self._advice.look_ahead(offset + length)
        if ready is not None:
            return self._client.write_from(ready[0], offset, length)
        self._reading += 1
        brought = self._storage.bring_in(offset, length, whole=True)
        return brought.addBoth(self._send_read, offset, length)

    def _send_read(self, result: Failure | Sendable, offset: int, length: int) -> Deferred[None]:
        """Send what was read from the disk, if it was."""
        self._reading -= 1
        if isinstance(result, Failure):
            # Known before the walk goes on: nothing more is to be sent.
            self._failure = self._failure or result
            answer: Deferred[None] = fail(result)
        else:
            answer = self._client.write_from(result[0], offset, length)
        self._wake()
        return answer

    # Many requests: what is done for each is plain calls, since a coroutine and its Deferreds would
    # cost as much as all the rest.

    def _is_room(self, length: int) -> bool:
        """Take the place for a request of *length* bytes, if it can be sent now: by the limit, the
        link, and the window.
        """
        self.raise_failure()
        if self._is_full(length) or not self._client.writable:
            return False
        now = self._reactor.seconds()
        if now > self._slice_ends or self._limit.delay(now):
            return False
        self._limit.charge(now, length)
        return True

    async def _room(self, length: int) -> None:
        """Wait until ``_is_room``."""
        while not self._is_room(length):
            if self._is_full(length):
                await self._answered()
            elif not self._client.writable:
                await self._client.when_writable()
            elif delay := self._limit.delay(self._reactor.seconds()):
                await deferLater(self._reactor, min(delay, RECHECK_SECONDS))
            else:
                await self._let_others_work()

    async def _let_others_work(self) -> None:
        """Let clients have their part of the reactor's time, if they want it."""
        since = self._slice_ends - SLICE_SECONDS
        owed = min(CLIENTS_SHARE * (self._reactor.seconds() - since), MOST_OWED_SECONDS)
        while owed > 0:
            before, turns = self._reactor.seconds(), self._clients_turns()
            await deferLater(self._reactor, 0)
            if self._clients_turns() == turns:
                break
            owed -= self._reactor.seconds() - before
        self._slice_ends = self._reactor.seconds() + SLICE_SECONDS

    def _is_full(self, length: int) -> bool:
        return bool(self._unanswered) and (
            len(self._unanswered) >= MOST_IN_FLIGHT
            or self._bytes_in_flight + length > IN_FLIGHT * REQUEST_SIZE
            or self._reading >= MOST_READING
        )

    def _launch(self, answer: Deferred[None], offset: int, length: int, *, zeroed: int = 0) -> None:
        """A request was begun that carries *length* bytes, or zeroes so many without."""
        self._is_flushed = False
        self._unanswered[offset] = None
        self._bytes_in_flight += length
        answer.addCallbacks(
            self._done,
            self._failed,
            callbackArgs=(offset, length, zeroed),
            errbackArgs=(offset, length),
        )

    def _done(self, _: None, offset: int, length: int, zeroed: int) -> None:
        progress = self._progress
        if zeroed:
            progress.zeroed += zeroed
        else:
            progress.sent += length
            progress.rate.add(self._reactor.seconds(), length)
        self._ended(offset, length)
        self.advanced()

    def _failed(self, failure: Failure, offset: int, length: int) -> None:
        self._failure = self._failure or failure
        self._ended(offset, length)

    def _ended(self, offset: int, length: int) -> None:
        del self._unanswered[offset]
        self._bytes_in_flight -= length
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)

    def _answered(self) -> Deferred[None]:
        """Fire at the next answer, or when the disk has read something."""
        self._waiter = Deferred(self._stop_waiting)
        return self._waiter

    def _stop_waiting(self, _: Deferred[None]) -> None:
        self._waiter = None

    async def _all_answered(self) -> None:
        while self._unanswered:
            await self._answered()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what a walk failed by, or would have."""
        if self._failure is not None:
            self._failure.raiseException()


def _pieces(extent: Extent, size: int) -> Iterator[tuple[int, int]]:
    for offset in range(extent.offset, extent.end, size):
        yield offset, min(size, extent.end - offset)
