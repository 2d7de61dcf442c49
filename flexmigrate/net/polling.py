"""Adaptive polling: after an answer, look for the next request for a moment before going to sleep;
or, where more come than can be answered, let some come together first.

A client that sends one request at a time otherwise pays two sleeps and two wake-ups for each.
Polling pays while one connection is busy and its client answers quickly; it costs where several
are, or where the client takes its time. So it's begun only after a run of wake-ups of the same
connection, stops for a while after looking in vain, and never goes on for so long that others
notice.

A client with many requests under way has sent the next ones before it was answered. Who takes them
at once gets one or two at a time, and both sides pay for a message for each; after a nap there are
dozens. A client with few under way would only wait longer by it: naps are left off for a while once
one has nothing under way any more that wasn't answered.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep

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


NAP_SECONDS = 1e-6
"""What is asked for: the kernel makes 50 microseconds more of it (timerslack, prctl(2)). Of longer
ones, other connections would notice."""

FIRST_REST = 64
LONGEST_REST = 4096
"""So many times that the client was ahead pass without a nap, once it had to wait because of one;
doubled each time, up to the second number."""

NAPS_THAT_TELL = 32
"""After so many naps in a row for none of which it had to wait, the next rest is short again."""

LONG = 64 * 1024
"""When so many bytes have come, there is enough to do."""


class Poller:
    """The decision for all connections of one server.

    :param seconds: how long to look; 0 turns polling off.
    :ivar turn_ends: when the reactor, and with it everybody else, should have its turn, by
        ``time.monotonic``.
    :ivar hits: looks that found a request.
    :ivar misses: looks in vain.
    """

    __slots__ = (
        *("_busy", "_naps", "_next_rest", "_pause", "_rest", "_run", "_skip"),
        *("hits", "misses", "seconds", "turn_ends"),
    )

    def __init__(self, seconds: float = DEFAULT_POLL_SECONDS) -> None:
        self.seconds = seconds
        self.turn_ends = 0.0
        self.hits = 0
        self.misses = 0
        self._busy: object = None
        self._run = 0
        self._skip = 0
        self._pause = FIRST_PAUSE
        self._be_awake()

    def _be_awake(self) -> None:
        self._naps = 0
        self._rest = self._next_rest = FIRST_REST

    def woken(self, connection: object) -> bool:
        """The reactor woke up *connection*: return whether to look for more once it is served."""
        if connection is not self._busy:
            self._busy = connection
            self._run = 0
            self._skip = 0
            self._pause = FIRST_PAUSE
            self._be_awake()
            return False
        self._run += 1
        if self._skip:
            self._skip -= 1
            return False
        if self._run <= RUN or self.seconds <= 0:
            return False
        self.turn_ends = monotonic() + LONGEST_TURN
        return True

    def look(self, receive: Callable[[int], int]) -> int:
        """Call *receive* until it returns something else than -1, or the time is over; where it
        brings something at once, perhaps once more after a nap. Return what it has come to.

        :param receive: receives behind so many bytes that were received before, and returns how
            many it received, or something less than 1.
        """
        size = receive(0)
        if size == -1:
            if self._naps:
                self._rest_from_naps()
            return self._wait(receive)
        self.hits += 1
        self._pause = FIRST_PAUSE
        if 0 < size < LONG and self._nap():
            size += max(receive(size), 0)
        return size

    def _wait(self, receive: Callable[[int], int]) -> int:
        until = monotonic() + self.seconds
        while (size := receive(0)) == -1:
            if monotonic() >= until:
                self.misses += 1
                self._skip = self._pause
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
                return size
        self.hits += 1
        self._pause = FIRST_PAUSE
        return size

    def _nap(self) -> bool:
        """The client was ahead: something was there before it could know of its answers. Let more
        come, and return True, unless that has just proved not to be worthwhile.
        """
        if self._rest:
            self._rest -= 1
            return False
        self._naps += 1
        if self._naps == NAPS_THAT_TELL:
            self._next_rest = FIRST_REST
        sleep(NAP_SECONDS)
        return True

    def _rest_from_naps(self) -> None:
        """The client isn't ahead any more: all that it had under way came together, so that it had
        nothing to do but to wait.
        """
        self._naps = 0
        self._rest = self._next_rest
        self._next_rest = min(self._next_rest * 2, LONGEST_REST)
