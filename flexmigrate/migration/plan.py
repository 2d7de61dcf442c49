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

# Where nothing shorter can be told apart, a pass took this long.
CLOCK_RESOLUTION = 1e-6

# Over how long a rate is measured.
RATE_WINDOW = 1.0

# A pass has to shrink what is dirty at least by this factor, or writers are slowed down.
SHRINK = 0.5

# What can be sent in this time is not worth another pass.
NEGLIGIBLE_SECONDS = 0.005

# Writers are slowed to this part of the rate at which we send, and by as much again each time
# that isn't enough.
SLOWER = 0.5

# Writers are never slowed below this, a block a second: less would be a stop, and the rest of so
# little fits into any downtime on any link worth the name.
SLOWEST = 4096

# A pass that sent less than this says more about the time an answer takes than about the link.
MEASURABLE = 1024 * 1024

# What is sent at once is a multiple of this where it can be: a page, and the block of nearly every
# filesystem.
GRAIN = 4096


class RateLimit:
    """A limit on what is sent, changeable while it runs: by setting ``bytes_per_second``.

    It is kept to over any stretch of time, but for ``BURST_SECONDS`` and one request: what may be
    sent now is paid for before the next may.

    :ivar bytes_per_second: the limit; 0 for none.
    """

    def __init__(self, bytes_per_second: int = 0) -> None:
        self.bytes_per_second = bytes_per_second
        self._owed = 0.0
        self._settled_at: float | None = None

    def delay(self, now: float) -> float:
        """Return how long to wait until the next request may be sent; ask again after that, since
        the limit may be another by then.
        """
        self._settle(now)
        # Less than a byte is the error of the arithmetic.
        return self._owed / self.bytes_per_second if self._owed >= 1 else 0.0

    def charge(self, now: float, length: int) -> None:
        """*length* bytes are sent."""
        self._settle(now)
        if self.bytes_per_second:
            self._owed += length

    def piece(self, most: int) -> int:
        """Return how much to send in one request, at most *most*, so that it goes smoothly."""
        if not self.bytes_per_second:
            return most
        smooth = int(self.bytes_per_second * BURST_SECONDS) // GRAIN * GRAIN
        return min(most, max(smooth, GRAIN))

    def _settle(self, now: float) -> None:
        """Pay for the time that has passed; nothing can be saved up but the burst."""
        limit, before = self.bytes_per_second, self._settled_at
        self._settled_at = now
        if not limit or before is None:
            self._owed = 0.0
        else:
            self._owed = max(self._owed - (now - before) * limit, -limit * BURST_SECONDS)


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
            self._rate = self._amount / elapsed
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
        """Return the rate at which it sent."""
        return self.sent / max(self.seconds, CLOCK_RESOLUTION)


def known_rate(before: float, done: Pass) -> float:
    """Return at which rate the rest can be expected to be sent, after *done*.

    :param before: what this returned after the pass before; 0 for the first.
    """
    return done.rate if done.sent >= MEASURABLE else max(before, done.rate)


def after_pass(done: Pass, max_downtime: float, rate: float) -> Next:
    """Say what follows *done*.

    Park once the rest is next to nothing, or can be sent within *max_downtime* and another pass
    wouldn't leave much less; clients need not wait for what can be sent while they work.

    :param rate: at which the rest is expected to be sent; 0 where nothing was sent yet.
    """
    if done.left <= min(max_downtime, NEGLIGIBLE_SECONDS) * rate:
        return Next.PARK
    if not rate or done.left <= SHRINK * done.sent:
        return Next.AGAIN
    return Next.PARK if done.left <= max_downtime * rate else Next.SLOW_DOWN


def slower(limit: float | None, rate: float) -> float:
    """Return what writers may write after *limit* (None: as they like) was not slow enough."""
    return max(SLOWEST, SLOWER * (rate if limit is None else min(limit, rate)))
