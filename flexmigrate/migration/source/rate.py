"""Rate limit and measurement of rates: arithmetic, without a clock of its own.

All times are in seconds, all amounts in bytes, all rates in bytes a second.
"""

from __future__ import annotations

# A limited stream may run ahead of its average by so much, so that timers needn't be exact: small
# enough that a limit of 1 MiB/s is smooth within a tenth of a second.
BURST_SECONDS = 0.1

# Over how long a rate is measured.
RATE_WINDOW = 1.0

# What is sent at once is a multiple of this where it can be: a page, and the block of nearly every
# filesystem.
GRAIN = 4096


class RateLimit:
    """A limit of the transfer rate, which may be changed by setting ``bytes_per_second``.

    It is kept over any period, except for ``BURST_SECONDS`` and one request: what may be
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
    """A rate of something, measured over the recent past."""

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
