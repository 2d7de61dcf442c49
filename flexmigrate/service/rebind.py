"""Opening of the serving address after a migration: at once, then once a second while the obstacle
may pass.

A supervisor may still be ending the old server, or moving the address from the old host to this
one: that takes a moment. An address of a family that this host doesn't have will never work: that
is an error at once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Protocol

from automat import TypeMachineBuilder
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()

RETRY_SECONDS = 1.0

MAY_PASS = frozenset(
    {
        errno.EADDRINUSE,  # the old server still has it
        errno.EADDRNOTAVAIL,  # the address is still at the old host
        errno.EACCES,  # as with EADDRNOTAVAIL, where a policy is moved with the address
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
    }
)


def error_number(error: BaseException | None) -> int | None:
    """Return the errno of a failure to listen, or None if it has none."""
    if isinstance(error, CannotListenError):
        error = error.socketError
    number = getattr(error, "errno", None)
    return number if isinstance(number, int) else None


class Rebind(Protocol):
    """The inputs of the state machine."""

    def start(self) -> None:
        """Begin; to be called once."""

    def cancel(self) -> None:
        """Give up."""

    def _try(self) -> None:
        """Try again: the pause is over."""

    def _bound(self) -> None:
        """Note that the address is open."""

    def _failed(self, failure: Failure) -> None:
        """Note that it could not be opened for now."""

    def _hopeless(self, failure: Failure) -> None:
        """Note that it can't ever be opened."""


class RebindCore:
    """The data that all states share.

    :param listen: opens the address; fails with OSError or CannotListenError.
    :ivar bound: fires once the address is open, or fails like the hopeless try.
    :ivar tries: the number of tries.
    :ivar error: the error of the last try.
    :ivar gave_up: whether further tries are of no use.
    """

    def __init__(self, reactor: Any, listen: Callable[[], Deferred[Any]]) -> None:
        self.reactor = reactor
        self.listen = listen
        self.bound: Deferred[None] = Deferred()
        self.tries = 0
        self.error: str | None = None
        self.gave_up = False
        self.since: float = reactor.seconds()

    def attempt(self, rebind: Rebind) -> Deferred[Any]:
        """Try to open the address; the result is an input."""
        self.tries += 1

        def failed(failure: Failure) -> None:
            self.error = failure.getErrorMessage()
            if (error_number(failure.value) or 0) in MAY_PASS:
                rebind._failed(failure)
            else:
                rebind._hopeless(failure)

        return maybeDeferred(self.listen).addCallbacks(lambda _: rebind._bound(), failed)


def _attempt(rebind: Rebind, core: RebindCore) -> Deferred[Any]:
    return core.attempt(rebind)


def _wait(rebind: Rebind, core: RebindCore, failure: Failure) -> IDelayedCall:
    if core.tries == 1:
        log.warn("can't open the serving address yet: {error}", error=core.error)
    delayed: IDelayedCall = core.reactor.callLater(RETRY_SECONDS, rebind._try)
    return delayed


builder = TypeMachineBuilder(Rebind, RebindCore)
new = builder.state("new")
trying = builder.state("trying", _attempt)
waiting = builder.state("waiting", _wait)
bound = builder.state("bound")
hopeless = builder.state("hopeless")
cancelled = builder.state("cancelled")

new.upon(Rebind.start).to(trying).returns(None)
new.upon(Rebind.cancel).to(cancelled).returns(None)
trying.upon(Rebind._failed, nodata=True).to(waiting).returns(None)
waiting.upon(Rebind._try, nodata=True).to(trying).returns(None)
for settled in (bound, hopeless, cancelled):
    settled.upon(Rebind.cancel).loop().returns(None)
for late in (Rebind._failed, Rebind._hopeless):
    cancelled.upon(late).loop().returns(None)
cancelled.upon(Rebind._bound).loop().returns(None)


@trying.upon(Rebind._bound).to(bound)
def _bound(rebind: Rebind, core: RebindCore, attempt: Deferred[Any]) -> None:
    log.info("the serving address is open, at try {tries}", tries=core.tries)
    core.error = None
    core.bound.callback(None)


@trying.upon(Rebind._hopeless).to(hopeless)
def _hopeless(rebind: Rebind, core: RebindCore, attempt: Deferred[Any], failure: Failure) -> None:
    core.gave_up = True
    core.bound.errback(failure)


@trying.upon(Rebind.cancel).to(cancelled)
def _cancel_try(rebind: Rebind, core: RebindCore, attempt: Deferred[Any]) -> None:
    attempt.cancel()


@waiting.upon(Rebind.cancel).to(cancelled)
def _cancel_wait(rebind: Rebind, core: RebindCore, delayed: IDelayedCall) -> None:
    delayed.cancel()


RebindMachine = builder.build()
"""The class that makes a Rebind from a RebindCore."""
