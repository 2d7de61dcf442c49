"""Adaptive polling: after an answer, look for the next request for a moment before going to sleep.

A client that sends one request at a time otherwise pays two sleeps and two wake-ups for each.
Polling pays while one connection is busy and its client answers quickly; it costs where several
are, or where the client takes its time. So it's begun only after a run of wake-ups of the same
connection, stops for a while after looking in vain, and never goes on for so long that others
notice.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

DEFAULT_POLL_SECONDS = 200e-6
"""How long one look takes: some sleeps and wake-ups of a virtual machine's processor
(docs/performance).
"""

# Wake-ups of the same connection in a row before polling begins: two busy clients rarely make so
# many.
RUN = 8

# The longest that one connection is polled, and served, without the reactor having its turn, in
# seconds: what another client's request may have to wait for it.
LONGEST_TURN = 1e-3

# After looking in vain, so many wake-ups pass without it; doubled each time, up to the second
# number.
FIRST_PAUSE = 4
LONGEST_PAUSE = 1024


class Poller:
    """The decision for all connections of one server.

    :param seconds: how long to look; 0 turns polling off.
    :ivar hits: looks that found a request.
    :ivar misses: looks in vain.
    """

    __slots__ = ("_busy", "_pause", "_run", "_skip", "_turn_ends", "hits", "misses", "seconds")

    def __init__(self, seconds: float = DEFAULT_POLL_SECONDS) -> None:
        self.seconds = seconds
        self.hits = 0
        self.misses = 0
        self._busy: object = None
        self._run = 0
        self._skip = 0
        self._pause = FIRST_PAUSE
        self._turn_ends = 0.0

    def woken(self, connection: object) -> bool:
        """The reactor woke up *connection*: return whether to look for more once it is served."""
        if connection is not self._busy:
            self._busy = connection
            self._run = 0
            self._skip = 0
            self._pause = FIRST_PAUSE
            return False
        self._run += 1
        if self._skip:
            self._skip -= 1
            return False
        if self._run <= RUN or self.seconds <= 0:
            return False
        self._turn_ends = monotonic() + LONGEST_TURN
        return True

    def turn_is_over(self) -> bool:
        """Whether the reactor, and with it everybody else, should have its turn."""
        return monotonic() >= self._turn_ends

    def look(self, receive: Callable[[], int]) -> int:
        """Call *receive* until it returns something else than -1, or the time is over."""
        until = monotonic() + self.seconds
        while (size := receive()) == -1:
            if monotonic() >= until:
                self.misses += 1
                self._skip = self._pause
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
                return size
        self.hits += 1
        self._pause = FIRST_PAUSE
        return size
