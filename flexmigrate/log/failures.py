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
