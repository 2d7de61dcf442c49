"""Adaptive polling: after an answer, look for the next request for a moment before going to sleep.
If more requests arrive than one answer takes, wait briefly so that several come together.

Without polling, a client that sends one request at a time costs two sleeps and two wake-ups for
each. Polling pays while one connection is busy and its client answers quickly; it costs if several
are busy, or if the client takes its time. So it begins only after several wake-ups of the same
connection in a row, pauses after a poll without result, and never lasts long enough for others to
notice.

A client with many requests under way has sent the next ones before it gets an answer. A server that
takes them at once gets one or two at a time, and both sides pay for a message for each; after a
coalescing delay there are dozens. For a client with few requests under way the delay would only be
lost time: the server backs off from delays for a while once a client had to wait because of one.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep

from flexmigrate.errors import UsageError, check_type

DEFAULT_POLL_SECONDS = 200e-6
"""Seconds of one poll: a few sleeps and wake-ups of a virtual machine's processor
(docs/performance).
"""

LONGEST_POLL_SECONDS = 0.01
"""The most that can be asked for. Longer than a disk takes, looking is not polling any more but
waiting."""

# Wake-ups of the same connection in a row before polling begins. Two busy clients rarely cause as
# many.
RUN = 8

# Seconds that one connection may be polled and served before the reactor runs other tasks: the time
# that another client's request may have to wait.
LONGEST_TURN = 1e-3

# Wake-ups without polling after a poll in vain; doubled each time, up to the second number.
FIRST_PAUSE = 4
LONGEST_PAUSE = 1024


COALESCING_SECONDS = 1e-6
"""The delay that is asked for; the kernel adds 50 microseconds (timerslack, prctl(2)). Other
connections would notice longer delays."""

FIRST_BACKOFF = 64
LONGEST_BACKOFF = 4096
"""Opportunities to delay that are passed over after a delay for which the client had to wait;
doubled each time, up to the second number."""

GOOD_DELAYS = 32
"""Delays in a row without such a wait, after which the next backoff is short again."""

LONG = 64 * 1024
"""Bytes that are enough work by themselves, so that no delay is needed."""


class Poller:
    """The polling decisions for all connections of one server.

    :param seconds: the length of a poll, up to `LONGEST_POLL_SECONDS`; 0 turns polling off.
    :raises UsageError: *seconds* is none of these.
    :ivar turn_ends: the time (``time.monotonic``) at which the reactor should run other tasks.
    :ivar hits: polls that found a request.
    :ivar misses: polls in vain.
    """

    __slots__ = (
        *("_backoff", "_busy", "_delays", "_next_backoff", "_pause", "_run", "_skip"),
        *("hits", "misses", "seconds", "turn_ends"),
    )

    def __init__(self, seconds: float = DEFAULT_POLL_SECONDS) -> None:
        check_type("seconds", seconds, float)
        if not 0 <= seconds <= LONGEST_POLL_SECONDS:
            raise UsageError(f"seconds={seconds}: it must be from 0 to {LONGEST_POLL_SECONDS}")
        self.seconds = seconds
        self.turn_ends = 0.0
        self.hits = 0
        self.misses = 0
        self._busy: object = None
        self._run = 0
        self._skip = 0
        self._pause = FIRST_PAUSE
        self._reset_delays()

    def _reset_delays(self) -> None:
        self._delays = 0
        self._backoff = self._next_backoff = FIRST_BACKOFF

    def woken(self, connection: object) -> bool:
        """Note that the reactor woke up *connection*; return whether to poll once it is served."""
        if connection is not self._busy:
            self._busy = connection
            self._run = 0
            self._skip = 0
            self._pause = FIRST_PAUSE
            self._reset_delays()
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
        """Call *receive* until it returns something other than -1, or the time is over. If the
        first call returns data, perhaps call once more after a coalescing delay. Return the total.

        :param receive: is given the number of bytes received so far, and appends to them; returns
            the number of bytes it received, or a number below 1.
        """
        size = receive(0)
        if size == -1:
            if self._delays:
                self._back_off()
            return self._wait(receive)
        self.hits += 1
        self._pause = FIRST_PAUSE
        if 0 < size < LONG and self._coalesce():
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

    def _coalesce(self) -> bool:
        """Let more requests come, and return True, unless a delay has lately proved useless. Called
        when data was there before the client could know of its answers.
        """
        if self._backoff:
            self._backoff -= 1
            return False
        self._delays += 1
        if self._delays == GOOD_DELAYS:
            self._next_backoff = FIRST_BACKOFF
        sleep(COALESCING_SECONDS)
        return True

    def _back_off(self) -> None:
        """Suspend delays: all requests of the client came together, so it was waiting for us."""
        self._delays = 0
        self._backoff = self._next_backoff
        self._next_backoff = min(self._next_backoff * 2, LONGEST_BACKOFF)
