"""An image's slow calls, done in threads; their results come back as Deferreds, in the reactor.

This counts the calls that are under way. It does not order them: two that overlap may be done in
either order, as they may on a disk. Whose is next where there aren't threads enough, the image's
share decides (``shares.py``), by who asks: a connection, or None, which is everybody else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from flexmigrate.image.shares import Share, Shares, share_of
from flexmigrate.image.storage import NotBegun

_P = ParamSpec("_P")
_T = TypeVar("_T")


class ThreadCalls:
    """The calls of one image in the threads of *pool*, which runs until the image is closed.

    All methods belong to the reactor's thread. A Deferred that is cancelled fails at once; its
    thread goes on, and is counted until it ends.

    :ivar pending: calls whose Deferred's callbacks haven't all run.
    """

    def __init__(self, reactor: IReactorFromThreads, pool: ThreadPool) -> None:
        self.pending = 0
        self._reactor = reactor
        self._pool = pool
        self._idle: list[Deferred[None]] = []
        self._share = share_of(pool)
        self._walks = Share(Shares(threads=0))  # one at a time

    def run_for(
        self, asker: object, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """Call *function* in a thread; the Deferred has its result or what it raised, or fails with
        `NotBegun` if *asker* is forgotten before its turn.
        """
        return self._call(self._share, asker, function, *args, **kwargs)

    def walk_for(
        self, asker: object, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> Deferred[_T]:
        """As `run_for`, for what takes the processor and not the disk: one such call at a time."""
        return self._call(self._walks, asker, function, *args, **kwargs)

    def run_beyond(self, function: Callable[[], _T]) -> Deferred[_T]:
        """Call *function* in a thread whatever else the image has under way; not counted."""
        return deferToThreadPool(self._reactor, self._pool, function)

    def _call(
        self,
        share: Share,
        asker: object,
        function: Callable[_P, _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> Deferred[_T]:
        answer: Deferred[_T] = Deferred()
        self.begun()

        def begin() -> Deferred[_T]:
            return deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)

        share.do(asker, _Call(share, begin, lambda result: self.settle(result, answer)))
        return answer

    def forget(self, asker: object) -> None:
        """Let what *asker* waits for and nobody has begun fail with `NotBegun`."""
        self._share.forget(asker)
        self._walks.forget(asker)

    # Counting, of what is done otherwise, too

    def begun(self, count: int = 1) -> None:
        """So many more calls are under way."""
        self.pending += count

    def ended(self, count: int = 1) -> None:
        """So many have ended, and their callbacks have run."""
        self.pending -= count
        while self._idle and not self.pending:
            self._idle.pop(0).callback(None)

    def settle(self, result: _T | Failure, answer: Deferred[_T]) -> None:
        """A call has ended with *result*, which *answer* is given."""
        # First the callbacks, in which the dirty map is marked; only then is the call over.
        answer.callback(result)
        self.ended()

    def drained(self) -> Deferred[None]:
        """See ``Storage.drained``."""
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        self.ended(0)
        return idle

    def close(self) -> None:
        """Give back the image's share; once nothing is pending, and nothing will be."""
        self._share.close()


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


class SharedFlush:
    """Flushes of one image, one at a time.

    Who comes while one runs can't know what it still takes in, and waits for the next, together
    with all others who came meanwhile. An error is given to each of them.

    :param begin: begins one.
    """

    def __init__(self, calls: ThreadCalls, begin: Callable[[], Deferred[Any]]) -> None:
        self._calls = calls
        self._begin = begin
        self._is_running = False
        self._waiting: list[Deferred[None]] = []

    def flush(self) -> Deferred[None]:
        """See ``Storage.flush``."""
        answer: Deferred[None] = Deferred()
        self._calls.begun()
        self._waiting.append(answer)
        if not self._is_running:
            self._run()
        return answer

    def _run(self) -> None:
        self._is_running = True
        answers, self._waiting = self._waiting, []
        self._begin().addBoth(self._ended, answers)

    def _ended(self, result: Failure | None, answers: list[Deferred[None]]) -> None:
        self._is_running = False
        if self._waiting:
            # Before the answers, whose callbacks may take a while.
            self._run()
        for answer in answers:
            self._calls.settle(result, answer)
