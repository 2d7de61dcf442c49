"""The delay before something costly that failed is tried again. Arithmetic, without a clock of its
own; all times are in seconds.
"""

from __future__ import annotations

FIRST = 1.0
"""Before each of the first retries: most of what fails once was a matter of a moment."""

AT_FIRST = 2
"""So many retries come after `FIRST` each."""

MOST = 60.0
"""Between two tries, at most."""


class Backoff:
    """A delay that grows from `FIRST` to `MOST`: doubled for each failure but the first `AT_FIRST`.

    :ivar failures: since the last reset.
    """

    def __init__(self) -> None:
        self.failures = 0

    def failed(self) -> float:
        """Count another failure; return how long to wait before the next try."""
        self.failures += 1
        doublings = max(0, self.failures - AT_FIRST)
        # Without an end, it would be a number too large for a float.
        return min(FIRST * 2.0 ** min(doublings, 60), MOST)

    def reset(self) -> None:
        """Begin with short delays again: the cause may have changed."""
        self.failures = 0
