"""Telling the log of failures: in one line those that an operator can cause, with a traceback those
that are bugs.
"""

from __future__ import annotations

from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.errors import FlexmigrateError, in_words


def is_expected(failure: Failure) -> bool:
    """Return whether this may happen without a bug: the system, or a peer, said no."""
    return failure.check(FlexmigrateError, OSError) is not None


def reason(failure: Failure) -> str:
    """Return what an operator should read of it."""
    return in_words(failure.value) if failure.value is not None else failure.getErrorMessage()


def tell(logger: Logger, what: str, failure: Failure) -> None:
    """Log *failure*, which is of *what* was done."""
    if is_expected(failure):
        logger.error("{what}: {reason}", what=what, reason=reason(failure))
    else:
        logger.failure("{what}", failure, what=what)


class Repeated:
    """Counts how often the same was said: what is tried each second must not fill the log."""

    def __init__(self) -> None:
        self._said: str | None = None
        self.times = 0

    def is_news(self, text: str) -> bool:
        """Return whether *text* should be logged in full: it is another than the last time."""
        is_other = text != self._said
        self._said, self.times = text, 1 if is_other else self.times + 1
        return is_other

    @property
    def is_due(self) -> bool:
        """Whether it is time to tell how often it was: at the 2nd, the 4th, the 8th … time."""
        return self.times & (self.times - 1) == 0
