"""When to send, how fast it goes, and when the rest is small enough: arithmetic, without a clock
of its own.

All times are in seconds, all amounts in bytes, all rates in bytes a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# A limited stream may run ahead of its average by so much, so that timers needn't be exact: small
# enough that a limit of 1 MiB/s is smooth within a tenth of a second.
BURST_SECONDS = 0.1

# How long the measured rate remembers.
RATE_WINDOW = 1.0

# A pass has to shrink what is dirty at least by this factor, or writers are slowed down.
SHRINK = 0.5

# Writers are slowed to this part of the rate at which we send, and by as much again each time
# that isn't enough.
SLOWER = 0.5

# Writers are never slowed below this: at such a rate every pass shrinks to nothing on any link
# worth the name.
SLOWEST = 64 * 1024


class RateLimit:
    """A limit on what is sent, changeable while it runs.

    :ivar bytes_per_second: the limit; 0 for none.
    """

    def __init__(self, bytes_per_second: int = 0) -> None:
        self.bytes_per_second = bytes_per_second
        self._paid_until = 0.0

    def delay(self, now: float, length: int) -> float:
        """Count *length* bytes as sent, and return how long to wait before sending them."""
        if not self.bytes_per_second:
            return 0.0
        start = max(self._paid_until, now - BURST_SECONDS)
        self._paid_until = start + length / self.bytes_per_second
        return max(0.0, start - now)


class Rate:
    """How fast something goes, as the recent past has it."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._amount = 0
        self._rate = 0.0

    def add(self, now: float, length: int) -> None:
        """*length* bytes more were done."""
        self._amount += length
        elapsed = now - self._since
        if elapsed >= RATE_WINDOW or (not self._rate and elapsed > 0):
            measured = self._amount / elapsed
            weight = min(1.0, elapsed / RATE_WINDOW)
            self._rate = (
                measured if not self._rate else (weight * measured + (1 - weight) * self._rate)
            )
            self._since, self._amount = now, 0

    def value(self, now: float) -> float:
        """Return the rate; 0 where nothing was measured."""
        elapsed = now - self._since
        if elapsed > RATE_WINDOW:
            return self._amount / elapsed
        return self._rate


class Next(Enum):
    """What follows a pass."""

    PARK = "park"
    AGAIN = "again"
    SLOW_DOWN = "slow down"


@dataclass(frozen=True)
class Pass:
    """What a pass came to.

    :ivar sent: bytes that it sent.
    :ivar seconds: how long it took.
    :ivar left: bytes that are dirty after it.
    """

    sent: int
    seconds: float
    left: int

    @property
    def rate(self) -> float:
        """Return the rate at which it sent; infinite where it took no time that could be
        measured.
        """
        return self.sent / self.seconds if self.seconds > 0 else float("inf")


def after_pass(done: Pass, max_downtime: float, rate: float) -> Next:
    """Say what follows *done*: park if the rest can be sent within *max_downtime*, else go on.

    :param rate: at which the rest is expected to be sent.
    """
    if done.left <= max_downtime * rate:
        return Next.PARK
    if done.left > SHRINK * done.sent:
        return Next.SLOW_DOWN
    return Next.AGAIN


def slower(limit: float | None, rate: float) -> float:
    """Return what writers may write after *limit* (None: as they like) was not slow enough."""
    return max(SLOWEST, SLOWER * (rate if limit is None else min(limit, rate)))
