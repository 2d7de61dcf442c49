"""Where the writes to an image are carried out: on the reactor's thread, which is quickest, or by
threads, which nobody else has to wait for.

A write of whole pages goes to the page cache and doesn't wait, as a rule. It does where there is no
page cache in front of a server or a daemon (``filesystems.py`` knows where), where the kernel slows
down who makes memory dirty more quickly than a disk takes it (balance_dirty_pages), or where the
filesystem's journal is full. The last two come and go: so once writes on the reactor's thread have
taken too long, threads carry them out for as long as these meet slow ones, and a while longer. That
while grows if it begins again soon. A turn that was long for another reason, say because the
processor was somebody else's, costs a moment of it, since the threads don't find any slow one.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

SLOW = 0.002
"""Seconds that a write takes, or those of one turn take more than they should, to be slow: another
client's read takes a tenth of that, network included."""

WRITE = 50e-6
"""Seconds that each of the short writes of a turn may take."""

FIRST_REST = 0.05
LONGEST_REST = 10.0
"""Seconds, from the last slow write on, before one is carried out on the reactor's thread again;
doubled where that proves to have been too soon."""

FORGOTTEN = 10
"""After so many times the last while without slow writes, the next one is short again."""


class Pace:
    """Of one image.

    :param is_slow: writes may always wait: threads carry out all of them.
    :ivar waits: threads do now.
    """

    __slots__ = ("_ended", "_is_confirmed", "_rest", "_seconds", "_until", "is_slow", "waits")

    def __init__(self, *, is_slow: bool = False, seconds: Callable[[], float] = monotonic) -> None:
        self.is_slow = self.waits = is_slow
        self._seconds = seconds
        self._rest = FIRST_REST
        self._until = self._ended = 0.0
        self._is_confirmed = False

    def turn_was_slow(self) -> None:
        """Writes on the reactor's thread have taken too long."""
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
        if seconds > SLOW:
            if not self._is_confirmed:
                self._is_confirmed = True
                self._rest = min(self._rest * 2, LONGEST_REST)
            self._until = now + self._rest
        elif now >= self._until and self.waits:
            self.waits = False
            self._ended = now
