"""Operations that may wait for the disk: threads carry them out, and Deferreds return the results.

This knows which calls of an image those are, and how many are under way. It does not order them:
two that overlap may be done in either order, as they may on a disk. Whose is next where there
aren't threads enough, the image's share decides (``shares.py``), by who asks: a connection, or
None, which is everybody else.

Short reads, of which a client may want many thousands a second, need no thread where the kernel
has rings (``kernel/ring_reader.py``), and are answered by a call each time that some are there.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from flexmigrate.image import reads
from flexmigrate.image.exact import Held, Readable
from flexmigrate.image.extents import Extent
from flexmigrate.image.kernel.ring_reader import LONGEST, Ended, ShortReads, Wanted, short_reads
from flexmigrate.image.shares import Share, Shares, share_of
from flexmigrate.net.sendable import FileSource

if TYPE_CHECKING:
    from flexmigrate.image.device import AnyImage
    from flexmigrate.image.file import Image
    from flexmigrate.image.flush_failure import FlushFailure

_P = ParamSpec("_P")
_T = TypeVar("_T")

log = Logger()

Outcome: TypeAlias = bytes | OSError | None
"""Of a short read: its bytes, None for a hole, or why they can't be read."""

Answer: TypeAlias = Callable[[list[tuple[Wanted, Outcome]]], object]
"""Called with the outcomes of some short reads."""

# Short reads that one thread waits for: handing over to it and back costs as much as several reads,
# but those that were read first wait for the last.
READS_AT_ONCE = 8

# So many extents are looked up in one go. Each costs this process a microsecond or two of the
# interpreter, which the reactor's thread can't have meanwhile: after so many, it gets it.
EXTENTS_AT_ONCE = 64
EXTENTS_REST = 50e-6

# Seconds after which looking up extents ends with what was found: others wait for their turn.
EXTENTS_SECONDS = 0.05


class NotBegun(OSError):
    """A call was forgotten before anybody had begun it: nothing happened."""

    def __init__(self) -> None:
        super().__init__(errno.ECANCELED, "forgotten before it was begun")


class Background:
    """An image's slow calls, in the threads of *pool*, which runs until the image is closed.

    All methods belong to the reactor's thread. A Deferred that is cancelled fails at once; its
    thread goes on, and is counted until it ends.

    :param may_have_ring: whether short reads may do without threads.
    :ivar pending: calls whose Deferred's callbacks haven't all run.
    :ivar holds_reads: what ``bring_in`` and ``fetch`` read is in this process's memory until it was
        sent, and not in the page cache: where to send from that might wait, too.
    """

    def __init__(
        self,
        image: AnyImage,
        reactor: IReactorFromThreads,
        pool: ThreadPool,
        *,
        may_have_ring: bool = True,
    ) -> None:
        self.pending = 0
        # Who has another kind of image overrides whatever uses this.
        self._image: Any = image
        self.holds_reads = not image.is_local
        self._reactor = reactor
        self._pool = pool
        self._idle: list[Deferred[None]] = []
        self._is_syncing = False
        self._unsynced: list[Deferred[None]] = []
        self._ring: ShortReads | None = None
        self._may_have_ring = may_have_ring
        self._share = share_of(pool)
        self._walks = Share(Shares(threads=0))  # of extents, one at a time

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """As :meth:`Image.read`."""
        return self.run(self._image.read, offset, length)

    def write(self, data: Readable, offset: int, asker: object = None) -> Deferred[None]:
        """As :meth:`Image.write`; *data* must stay as it is until the Deferred fires."""
        return self.run_for(asker, self._image.write_in_thread, data, offset)

    def zero(
        self,
        offset: int,
        length: int,
        *,
        may_punch: bool,
        fast_only: bool = False,
        asker: object = None,
    ) -> Deferred[None]:
        """As :meth:`Image.zero`."""
        return self.run_for(
            asker, self._image.zero, offset, length, may_punch=may_punch, fast_only=fast_only
        )

    def trim(self, offset: int, length: int, asker: object = None) -> Deferred[None]:
        """As :meth:`Image.trim`."""
        return self.run_for(asker, self._image.trim, offset, length)

    def read_short(
        self, wanted: Sequence[Wanted], answer: Answer, *, whole: bool, asker: object = None
    ) -> None:
        """Read short ranges, in any order, and call *answer* until each of them has its outcome.

        The kernel should have begun to fetch them already, having been asked for them without
        waiting: then they come from the disk side by side whoever waits for them.

        :param whole: whether a hole is to be read as zeroes.
        """
        if self._may_have_ring and self._ring is None:
            # Late, since a daemon forks, and not at all where there is nothing to wait for.
            self._ring = short_reads(self._reactor, self._ring_told)
            self._may_have_ring = self._ring is not None
        if self._ring is not None and all(length <= LONGEST for _, _, length in wanted):
            wanted = self._read_by_ring(self._ring, wanted, answer, whole)
        for at in range(0, len(wanted), READS_AT_ONCE):
            self._read_by_thread(wanted[at : at + READS_AT_ONCE], answer, whole, asker)

    def _read_by_ring(
        self, ring: ShortReads, wanted: Sequence[Wanted], answer: Answer, whole: bool
    ) -> Sequence[Wanted]:
        """Return what there was no room for."""
        left = ring.begin(self._image.fd, wanted, (answer, whole))
        self.pending += len(wanted) - len(left)
        return left

    def _ring_told(self, ended: list[Ended]) -> None:
        """Answer each asker once for all that it can have now."""
        outcomes: dict[tuple[Answer, bool], list[tuple[Wanted, Outcome]]] = {}
        asker: tuple[Answer, bool] | None = None
        its: list[tuple[Wanted, Outcome]] = []
        try:
            for each, about, data in ended:
                answer, whole = about
                if data is None:
                    self._read_by_thread([each], answer, whole)
                    continue
                if about is not asker:
                    asker, its = about, outcomes.setdefault(about, [])
                is_hole = not whole and self._image.is_hole(data, each[1])
                its.append((each, None if is_hole else data))
            for (answer, _), some in outcomes.items():
                try:
                    answer(some)
                except Exception:  # noqa: BLE001  # one asker's bug is not to end the others' reads
                    log.failure("short reads failed with an unexpected error")
        finally:
            self.pending -= len(ended)
            self._tell_if_idle()

    def _read_by_thread(
        self, wanted: Sequence[Wanted], answer: Answer, whole: bool, asker: object = None
    ) -> None:
        def failed(failure: Failure) -> list[OSError]:
            if isinstance(failure.value, NotBegun):
                return [failure.value] * len(wanted)
            log.failure("short reads failed with an unexpected error", failure)
            return [OSError(errno.EIO, "internal error")] * len(wanted)

        ranges = [(offset, length) for _, offset, length in wanted]
        reading: Deferred[Any] = self.run_for(asker, reads.several, self._image, ranges, whole)
        reading.addErrback(failed)
        reading.addCallback(lambda outcomes: answer(list(zip(wanted, outcomes, strict=True))))
        reading.addErrback(
            lambda failure: log.failure("short reads failed with an unexpected error", failure)
        )

    def bring_in(
        self, offset: int, length: int, *, whole: bool, asker: object = None
    ) -> Deferred[tuple[FileSource, list[Extent]]]:
        """Return what a range can be sent from without waiting, and its extents: all of it as data
        if it must stay *whole*.
        """
        if self.holds_reads:
            reading = self.run_for(asker, self._image.read, offset, length)
            return reading.addCallback(
                lambda data: (Held(offset, data), [Extent(offset, length, True)])
            )
        brought = self.run_for(asker, reads.bring_in, self._image, offset, length, whole)
        return brought.addCallback(lambda pieces: (self._image, pieces))

    def fetch(self, offset: int, length: int) -> Deferred[FileSource]:
        """Return what a range can be sent from without waiting."""
        if self.holds_reads:
            return self.read(offset, length).addCallback(lambda data: Held(offset, data))
        fetched = self.run(self._image.make_resident, offset, length)
        return fetched.addCallback(lambda _: self._image)

    def extents(
        self, offset: int, length: int, limit: int, asker: object = None
    ) -> Deferred[list[Extent]]:
        """Return the first extents of a range: at least one, at most *limit* of them, and no more
        than are found in `EXTENTS_SECONDS`.

        One call at a time: it takes the processor, and not the disk.
        """
        return self._call(self._walks, asker, _first_extents, self._image, offset, length, limit)

    def will_need(self, ranges: list[tuple[int, int]], asker: object = None) -> Deferred[None]:
        """As :meth:`Image.will_need`."""
        return self.run_for(asker, self._image.will_need, ranges)

    def drop_cached(self, ranges: list[tuple[int, int]]) -> Deferred[None]:
        """As :meth:`Image.drop_cached`."""
        return self.run(self._image.drop_cached, ranges)

    def write_back(self) -> Deferred[None]:
        """As :meth:`Image.write_back`."""
        return self.run(self._image.write_back)

    def flush_failed(self, call: Callable[[FlushFailure], object]) -> None:
        """Call *call*, in the reactor's thread, when a flush of the image has failed."""
        self._image.durability.heard = lambda failure: self._reactor.callFromThread(call, failure)

    def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Call *function* in a thread; the Deferred has its result or what it raised."""
        return self.run_for(None, function, *args, **kwargs)

    def run_for(
        self, asker: object, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """As :meth:`run`, for *asker*: fails with `NotBegun` if he is forgotten before its turn."""
        return self._call(self._share, asker, function, *args, **kwargs)

    def forget(self, asker: object) -> None:
        """Let what *asker* waits for and nobody has begun fail with `NotBegun`; flushes, which
        everybody shares, go on.
        """
        self._share.forget(asker)
        self._walks.forget(asker)

    def _call(
        self,
        share: Share,
        asker: object,
        function: Callable[_P, _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> Deferred[_T]:
        answer: Deferred[_T] = Deferred()
        self.pending += 1

        def begin() -> Deferred[_T]:
            return deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)

        share.do(asker, _Call(share, begin, lambda result: self._settle(result, answer)))
        return answer

    def flush(self) -> Deferred[None]:
        """Wait until all that was done before this call is on stable storage (fdatasync(2)).

        One sync runs at a time. Who comes while it does can't know what it still takes in, and
        waits for the next, together with all others who came meanwhile. An error is given to each
        of them.
        """
        answer: Deferred[None] = Deferred()
        self.pending += 1
        self._unsynced.append(answer)
        if not self._is_syncing:
            self._sync()
        return answer

    def drained(self) -> Deferred[None]:
        """Fire once nothing is pending, which may be now: all callbacks have run by then.

        Calls that are made while this waits are waited for too.
        """
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        self._tell_if_idle()
        return idle

    def close(self) -> None:
        """Let go of what isn't the image's; once nothing is pending, and nothing will be."""
        self._may_have_ring = False
        self._share.close()
        if self._ring is not None:
            ring, self._ring = self._ring, None
            ring.close()

    def _sync(self) -> None:
        self._is_syncing = True
        answers, self._unsynced = self._unsynced, []
        self._begin_flush().addBoth(self._synced, answers)

    def _begin_flush(self) -> Deferred[Any]:
        return deferToThreadPool(self._reactor, self._pool, self._image.flush)

    def _synced(self, result: Failure | None, answers: list[Deferred[None]]) -> None:
        self._is_syncing = False
        if self._unsynced:
            # Before the answers, whose callbacks may take a while.
            self._sync()
        for answer in answers:
            self._settle(result, answer)

    def _settle(self, result: _T | Failure, answer: Deferred[_T]) -> None:
        # First the callbacks, in which the dirty map is marked; only then is the call over.
        answer.callback(result)
        self.pending -= 1
        self._tell_if_idle()

    def _tell_if_idle(self) -> None:
        while self._idle and not self.pending:
            self._idle.pop(0).callback(None)


class _Call:
    """A call that waits for its turn, or is under way.

    :param begin: has a thread do it.
    :param settle: called once with its outcome.
    """

    __slots__ = ("_begin", "_settle", "_share")

    def __init__(
        self,
        share: Share,
        begin: Callable[[], Deferred[Any]],
        settle: Callable[[Any], None],
    ) -> None:
        self._share = share
        self._begin = begin
        self._settle = settle

    def begin(self) -> None:
        """See ``shares.Call``."""
        self._begin().addBoth(self._ended)

    def forget(self) -> None:
        """See ``shares.Call``."""
        self._settle(Failure(NotBegun()))

    def _ended(self, result: Any) -> None:
        # The next begins before the callbacks, which may take a while.
        self._share.ended()
        self._settle(result)


def _first_extents(image: Image, offset: int, length: int, limit: int) -> list[Extent]:
    """Return the first extents of a range: see ``Background.extents``."""
    found: list[Extent] = []
    until = monotonic() + EXTENTS_SECONDS
    for extent in image.extents(offset, length):
        found.append(extent)
        if len(found) >= limit:
            break
        if not len(found) % EXTENTS_AT_ONCE:
            if monotonic() > until:
                break
            sleep(EXTENTS_REST)
    return found
