"""The order of slow calls: a server's threads are shared fairly among its images, and an image's
share among its connections.

A disk that hangs keeps every thread that it is given. So each image has one that is its own
whatever the others do, and of those that are for all it gets no more than a part once there are
several images. What can't begin yet waits in a queue for each asker, and they take turns: who asks
for much waits behind his own requests, and not the others behind him. What waits can be forgotten,
since nobody has begun it.

Everything here belongs to the reactor's thread. It knows no image, and no call: only how many of
them are begun.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Hashable
from typing import Any, Protocol

from twisted.python.threadpool import ThreadPool

THREADS = 16
"""Calls of all images together that wait for their disks at the same time: what keeps an SSD's
queue filled. Each image has `OWN` more."""

OWN = 1
"""Calls of an image that begin whatever the others do."""

PART = 0.75
"""Of the threads for all, one of several images has no more than this part."""

LANES = OWN + 2
"""Threads that a server needs for each of its images beside those for all: one for a flush, of
which there is one at a time, and one that looks up extents, likewise; neither waits for others."""


class Call(Protocol):
    """A call that can begin, or be forgotten: either of them once."""

    def begin(self) -> None:
        """Have a thread do it; then ``Share.ended`` is called, once."""

    def forget(self) -> None:
        """Nobody waits for it any more, and it will not be done."""


class Shares:
    """The shares of the images that use the same threads.

    :param threads: for all of them together; beyond that, each has *own*.
    :ivar queued: calls that wait.
    """

    def __init__(self, threads: int, own: int = OWN) -> None:
        self.threads = threads
        self.own = own
        self.queued = 0
        self.in_use = 0  # of the threads for all
        self.images = 0
        self.waiting: dict[Share, None] = {}  # that could use one more, in the order of their turns

    @property
    def most(self) -> int:
        """Threads for all that one image may have."""
        return self.threads if self.images < 2 else int(self.threads * PART)

    def dispatch(self) -> None:
        """Begin what can begin, of one image after the other."""
        passed = 0
        while self.waiting and self.in_use < self.threads and passed < len(self.waiting):
            share = next(iter(self.waiting))
            del self.waiting[share]
            if share.may_begin:
                passed = 0
                share.begin_next()
            else:
                passed += 1
            if share.has_queue:
                self.waiting[share] = None


class Share:
    """An image's.

    :ivar running: calls that are begun and haven't ended.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._queues: dict[Hashable, deque[Call]] = {}  # in the order of their turns
        self._is_open = True
        self.running = 0
        shares.images += 1

    @property
    def has_queue(self) -> bool:
        """Whether calls wait."""
        return bool(self._queues)

    @property
    def may_begin(self) -> bool:
        """Whether one more call may begin now."""
        shares, beyond = self._shares, self.running - self._shares.own
        return beyond < 0 or (beyond < shares.most and shares.in_use < shares.threads)

    def do(self, asker: Hashable, call: Call) -> None:
        """Begin *call* now, or when it is *asker*'s turn."""
        if not self._queues and self.may_begin:
            self._begin(call)
            return
        self._queues.setdefault(asker, deque()).append(call)
        self._shares.queued += 1
        self._shares.waiting[self] = None

    def begin_next(self) -> None:
        """Begin the call whose turn it is; there must be one, and it must be allowed to."""
        asker, calls = next(iter(self._queues.items()))
        call = calls.popleft()
        del self._queues[asker]
        if calls:
            self._queues[asker] = calls
        self._shares.queued -= 1
        self._begin(call)

    def _begin(self, call: Call) -> None:
        if self.running >= self._shares.own:
            self._shares.in_use += 1
        self.running += 1
        call.begin()

    def ended(self) -> None:
        """A call has ended: its thread is for whoever is next."""
        self.running -= 1
        if self.running >= self._shares.own:
            self._shares.in_use -= 1
        elif self._queues:
            self.begin_next()
        if not self._queues:
            self._shares.waiting.pop(self, None)
        self._shares.dispatch()

    def forget(self, asker: Hashable) -> None:
        """Forget the calls of *asker* that haven't begun."""
        calls = self._queues.pop(asker, None)
        if calls is None:
            return
        self._shares.queued -= len(calls)
        if not self._queues:
            self._shares.waiting.pop(self, None)
        for call in calls:
            call.forget()

    def close(self) -> None:
        """The image is closed, and nothing of it waits or is under way. Twice is allowed."""
        if self._is_open:
            self._is_open = False
            self._shares.images -= 1


class ImageThreads(ThreadPool):
    """The threads of one server, which are made when they are needed; not yet started, since a
    daemon forks first.

    They must outlive every image: what is given to a stopped pool is never done.

    :ivar shares: decides whose call they do next.
    """

    def __init__(self, threads: int = THREADS) -> None:
        super().__init__(minthreads=0, maxthreads=threads, name="image")
        self.shares = Shares(threads)

    def new_share(self) -> Share:
        """Return that of one more image."""
        self.max += LANES
        return Share(self.shares)

    @property
    def busy(self) -> int:
        """The number of threads that work now."""
        return len(self.working)


def share_of(pool: Any) -> Share:
    """Return what an image gets of *pool*; of a pool that isn't ours, all that it wants, and the
    pool has its own queue.
    """
    if isinstance(pool, ImageThreads):
        return pool.new_share()
    return Share(Shares(sys.maxsize))
