"""A file or a kernel's block device as a ``Storage``: which of an image's calls are made at once,
and which in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.threadpool import ThreadPool

from flexmigrate.image import reads
from flexmigrate.image.cold_reads import ColdReads
from flexmigrate.image.exact import Held, Readable
from flexmigrate.image.extents import Extent
from flexmigrate.image.file import Image
from flexmigrate.image.flush_failure import FlushFailure
from flexmigrate.image.kernel.ring_reader import Wanted
from flexmigrate.image.storage import Answer, Sendable
from flexmigrate.image.thread_calls import SharedFlush, ThreadCalls
from flexmigrate.image.trust import Trust

_P = ParamSpec("_P")
_T = TypeVar("_T")

# So many extents are looked up in one go. Each costs this process a microsecond or two of the
# interpreter, which the reactor's thread can't have meanwhile: after so many, it gets it.
EXTENTS_AT_ONCE = 64
EXTENTS_REST = 50e-6

# Seconds after which looking up extents ends with what was found: others wait for their turn.
EXTENTS_SECONDS = 0.05


class FileStorage:
    """An open image whose slow calls are done by the threads of *pool*, which runs until the image
    is closed; see ``Storage`` for what the methods do.

    :param may_have_ring: whether short reads may do without threads.
    :ivar image: the open file; ``fast`` and ``blocking`` are the same object.
    """

    def __init__(
        self,
        image: Image,
        reactor: IReactorFromThreads,
        pool: ThreadPool,
        *,
        may_have_ring: bool = True,
    ) -> None:
        self.image = self.fast = self.blocking = image
        self.holds_reads = not image.is_local  # to send from the page cache might wait, too
        self._reactor = reactor
        self._calls = ThreadCalls(reactor, pool)
        self._flushes = SharedFlush(self._calls, lambda: self._calls.run_beyond(image.flush))
        self._cold_reads = ColdReads(image, self._calls, reactor, may_have_ring=may_have_ring)

    @property
    def path(self) -> str:
        return self.image.path

    @property
    def real_path(self) -> str:
        return self.image.real_path

    @property
    def size(self) -> int:
        return self.image.size

    @property
    def read_only(self) -> bool:
        return self.image.read_only

    @property
    def identity(self) -> tuple[int, int]:
        return self.image.identity

    @property
    def trust(self) -> Trust | None:
        return None if self.image.is_block_device else self.image.trust

    @property
    def is_unlinkable(self) -> bool:
        return not self.image.is_block_device

    @property
    def is_closed(self) -> bool:
        return self.image.is_closed

    @property
    def cut(self) -> str | None:
        return self.image.cut

    @property
    def flush_failure(self) -> FlushFailure | None:
        return self.image.flush_failure

    @property
    def other_names(self) -> int:
        return self.image.other_names

    @property
    def pending(self) -> int:
        return self._calls.pending

    # Reading

    def ready(self, offset: int, length: int, *, whole: bool) -> Sendable | None:
        if not self.image.is_resident(offset, length):
            return None
        return self.image, reads.pieces(self.image, offset, length, whole)

    def bring_in(
        self, offset: int, length: int, *, whole: bool, asker: object = None
    ) -> Deferred[Sendable]:
        image = self.image
        if self.holds_reads:
            return self._calls.run_for(asker, _held, image, offset, length)
        return self._calls.run_for(asker, _brought_in, image, offset, length, whole)

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        return self.run(self.image.read, offset, length)

    def read_short(
        self, wanted: Sequence[Wanted], answer: Answer, *, whole: bool, asker: object = None
    ) -> None:
        self._cold_reads.begin(wanted, answer, whole=whole, asker=asker)

    def extents(
        self, offset: int, length: int, limit: int, asker: object = None
    ) -> Deferred[list[Extent]]:
        """See ``Storage``. No more than are found in `EXTENTS_SECONDS`; one call at a time."""
        return self._calls.walk_for(asker, _first_extents, self.image, offset, length, limit)

    def will_need(self, ranges: list[tuple[int, int]], asker: object = None) -> Deferred[None]:
        return self._calls.run_for(asker, self.image.will_need, ranges)

    def drop_cached(self, ranges: list[tuple[int, int]]) -> Deferred[None]:
        return self.run(self.image.drop_cached, ranges)

    # Changing

    def write(self, data: Readable, offset: int, asker: object = None) -> Deferred[None]:
        return self._calls.run_for(asker, self.image.write_in_thread, data, offset)

    def zero(
        self,
        offset: int,
        length: int,
        *,
        may_punch: bool,
        fast_only: bool = False,
        asker: object = None,
    ) -> Deferred[None]:
        return self._calls.run_for(
            asker, self.image.zero, offset, length, may_punch=may_punch, fast_only=fast_only
        )

    def trim(self, offset: int, length: int, asker: object = None) -> Deferred[None]:
        return self._calls.run_for(asker, self.image.trim, offset, length)

    def write_back(self) -> Deferred[None]:
        return self.run(self.image.write_back)

    def flush(self) -> Deferred[None]:
        return self._flushes.flush()

    def flush_failed(self, call: Callable[[FlushFailure], object]) -> None:
        """Call *call*, in the reactor's thread, when a flush of the image has failed."""
        self.image.durability.heard = lambda failure: self._reactor.callFromThread(call, failure)

    # What it is called, and how large it is

    def size_fault(self) -> str | None:
        return self.image.size_fault()

    def grow(self) -> bool:
        return self.image.grow()

    def name_fault(self) -> Deferred[str | None]:
        return self.run(self.image.name_fault)

    def other_readers(self) -> Deferred[str | None]:
        return self.run(self.image.other_readers)

    def unlink(self) -> Deferred[None]:
        return self.run(self.image.unlink)

    # Calls of others', and the end

    def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        return self._calls.run_for(None, function, *args, **kwargs)

    def forget(self, asker: object) -> None:
        self._calls.forget(asker)

    def drained(self) -> Deferred[None]:
        return self._calls.drained()

    def close(self) -> Deferred[None]:
        """See ``Storage``. Closes the image, too."""
        return Deferred.fromCoroutine(self._close())

    async def _close(self) -> None:
        if not self.image.is_local:
            # Its daemon or its server is asked when it is closed, and others needn't wait for that.
            await self.run(self.image.close)
        self._cold_reads.close()
        self._calls.close()
        self.image.close()


def _held(image: Image, offset: int, length: int) -> Sendable:
    return Held(offset, image.read(offset, length)), [Extent(offset, length, True)]


def _brought_in(image: Image, offset: int, length: int, whole: bool) -> Sendable:
    return image, reads.bring_in(image, offset, length, whole)


def _first_extents(image: Image, offset: int, length: int, limit: int) -> list[Extent]:
    """Return the first extents of a range: see ``FileStorage.extents``."""
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
