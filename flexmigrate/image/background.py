"""What may wait for the disk, done in threads; the answers come back as Deferreds, in the reactor.

This knows which calls of an image those are, and how many are under way. It does not order them:
two that overlap may be done in either order, as they may on a disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from flexmigrate.image.exact import Readable
from flexmigrate.image.file import Image

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Background:
    """An image's slow calls, in the threads of *pool*, which runs until the image is closed.

    All methods belong to the reactor's thread. A Deferred that is cancelled fails at once; its
    thread goes on, and is counted until it ends.

    :ivar pending: calls whose Deferred's callbacks haven't all run.
    """

    def __init__(self, image: Image, reactor: IReactorFromThreads, pool: ThreadPool) -> None:
        self.pending = 0
        self._image = image
        self._reactor = reactor
        self._pool = pool
        self._idle: list[Deferred[None]] = []
        self._is_syncing = False
        self._unsynced: list[Deferred[None]] = []

    def read(self, offset: int, length: int) -> Deferred[bytes]:
        """As :meth:`Image.read`."""
        return self.run(self._image.read, offset, length)

    def write(self, data: Readable, offset: int) -> Deferred[None]:
        """As :meth:`Image.write`; *data* must stay as it is until the Deferred fires."""
        return self.run(self._image.write, data, offset)

    def zero(
        self, offset: int, length: int, *, may_punch: bool, fast_only: bool = False
    ) -> Deferred[None]:
        """As :meth:`Image.zero`."""
        return self.run(self._image.zero, offset, length, may_punch=may_punch, fast_only=fast_only)

    def trim(self, offset: int, length: int) -> Deferred[None]:
        """As :meth:`Image.trim`."""
        return self.run(self._image.trim, offset, length)

    def make_resident(self, offset: int, length: int) -> Deferred[None]:
        """As :meth:`Image.make_resident`."""
        return self.run(self._image.make_resident, offset, length)

    def will_need(self, ranges: list[tuple[int, int]]) -> Deferred[None]:
        """As :meth:`Image.will_need`."""
        return self.run(self._image.will_need, ranges)

    def drop_cached(self, ranges: list[tuple[int, int]]) -> Deferred[None]:
        """As :meth:`Image.drop_cached`."""
        return self.run(self._image.drop_cached, ranges)

    def write_back(self) -> Deferred[None]:
        """As :meth:`Image.write_back`."""
        return self.run(self._image.write_back)

    def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Deferred[_T]:
        """Call *function* in a thread; the Deferred has its result or what it raised."""
        answer: Deferred[_T] = Deferred()
        self.pending += 1
        work = deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)
        work.addBoth(self._settle, answer)
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

    def _sync(self) -> None:
        self._is_syncing = True
        answers, self._unsynced = self._unsynced, []
        work = deferToThreadPool(self._reactor, self._pool, self._image.flush)
        work.addBoth(self._synced, answers)

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
