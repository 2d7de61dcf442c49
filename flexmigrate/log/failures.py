"""Logging of failures: one line for those that an operator can cause, a traceback for those
that are bugs.
"""

from __future__ import annotations

from twisted.logger import Logger
from twisted.python.failure import Failure

from flexmigrate.errors import FlexmigrateError, in_words


def is_expected(failure: Failure) -> bool:
    """Return whether a failure may happen without a bug: the system, or a peer, refused."""
    return failure.check(FlexmigrateError, OSError) is not None


def reason(failure: Failure) -> str:
    """Return the reason of a failure, for an operator."""
    return in_words(failure.value) if failure.value is not None else failure.getErrorMessage()


def tell(logger: Logger, what: str, failure: Failure) -> None:
    """Log *failure*, after a description of *what* has failed."""
    if is_expected(failure):
        logger.error("{what}: {reason}", what=what, reason=reason(failure))
    else:
        logger.failure("{what}", failure, what=what)


class Repeated:
    """A counter of equal messages: an attempt each second must not fill the log."""

    def __init__(self) -> None:
        self._said: str | None = None
        self.times = 0

    def is_news(self, text: str) -> bool:
        """Return whether *text* should be logged in full: it differs from the last one."""
        is_other = text != self._said
        self._said, self.times = text, 1 if is_other else self.times + 1
        return is_other

    @property
    def is_due(self) -> bool:
        """Whether the number of repeats should be logged now: at the 2nd, 4th, 8th … time."""
        return self.times & (self.times - 1) == 0
