"""The choice of where a write is carried out: on the reactor's thread, which is quickest, or by a
thread of the pool, for which nobody else has to wait.

A write of whole pages goes to the page cache and doesn't wait, as a rule. It does where there is no
page cache in front of a server or a daemon (``filesystems.py`` knows where), where the kernel slows
down who makes memory dirty more quickly than a disk takes it (balance_dirty_pages), or where the
filesystem's journal is full. The last two come and go: so once writes on the reactor's thread have
taken too long, threads carry them out for as long as these meet slow ones, and a while longer. That
while grows if it begins again soon.

A write also seems to take long where this thread had no processor meanwhile, which the kernel tells
(sched-stats.rst of its documentation): that is no reason. A turn that was long for yet another one
costs a moment of it, since the threads don't find any slow write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

SLOW = 0.008
"""Seconds that a write takes, or those of one turn take more than they should, to be slow: longer
than a thread of Python's may have to wait for another one (``sys.getswitchinterval``), and less
than the kernel makes who makes too much memory dirty wait (10 to 200 ms)."""

WRITE = 50e-6
"""Seconds that each of the short writes of a turn may take."""

FIRST_REST = 0.05
LONGEST_REST = 10.0
"""Seconds, from the last slow write on, before one is carried out on the reactor's thread again;
doubled where that proves to have been too soon."""

FORGOTTEN = 10
"""After so many times the last while without slow writes, the next one is short again."""


_seen = threading.local()


def had_processor(seconds: float) -> bool:
    """Return whether this thread had a processor for most of the last *seconds*, or wanted none;
    True where the kernel doesn't say, and sometimes False although it had one, if it didn't have
    one before that and nobody has asked since.
    """
    try:
        with open("/proc/thread-self/schedstat", encoding="ascii") as file:
            waited = int(file.read().split()[1]) * 1e-9
    except (OSError, ValueError, IndexError):
        return True
    before, _seen.waited = getattr(_seen, "waited", 0.0), waited
    return bool(waited - before < seconds / 2)


class Pace:
    """The pace of writes to one image.

    :param is_slow: writes may always wait: threads carry out all of them.
    :param was_running: see `had_processor`.
    :ivar waits: threads do now.
    """

    __slots__ = (
        *("_ended", "_is_confirmed", "_rest", "_seconds", "_until", "_was_running"),
        *("is_slow", "waits"),
    )

    def __init__(
        self,
        *,
        is_slow: bool = False,
        seconds: Callable[[], float] = monotonic,
        was_running: Callable[[float], bool] = had_processor,
    ) -> None:
        self.is_slow = self.waits = is_slow
        self._was_running = was_running
        self._seconds = seconds
        self._rest = FIRST_REST
        self._until = self._ended = 0.0
        self._is_confirmed = False

    def turn_was_slow(self, seconds: float) -> None:
        """Writes on the reactor's thread have taken too long: so many *seconds*."""
        if not self._was_running(seconds):
            return
        now = self._seconds()
        if now - self._ended > FORGOTTEN * self._rest:
            self._rest = FIRST_REST
        self.waits = True
        self._until = now + self._rest
        self._is_confirmed = False

    def waited(self, seconds: float) -> None:
        """A thread has carried out a write, in so many *seconds*; called by that thread."""
        if self.is_slow:
            return
        now = self._seconds()
        if seconds > SLOW and self._was_running(seconds):
            if not self._is_confirmed:
                self._is_confirmed = True
                self._rest = min(self._rest * 2, LONGEST_REST)
            self._until = now + self._rest
        elif now >= self._until and self.waits:
            self.waits = False
            self._ended = now
