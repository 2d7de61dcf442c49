"""The time for which an attempt keeps clients parked, and its limit."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout

from flexmigrate.errors import MigrationError
from flexmigrate.migration.source.convergence import Convergence


class Parking:
    """Clients are parked once in an attempt at most.

    :ivar waits_for: what keeps clients parked at present, in words for the error.
    """

    def __init__(self, reactor: Any, convergence: Convergence) -> None:
        self._reactor = reactor
        self._convergence = convergence
        self._began: float | None = None
        self._ended: float | None = None
        self._has_flushed = False
        self.waits_for = ""

    @property
    def has_begun(self) -> bool:
        """Whether clients were parked, or are."""
        return self._began is not None

    def expected(self, left: int) -> float:
        """Return for how long clients should be parked for *left* bytes, in seconds."""
        return self._convergence.downtime(left) or 0.0

    def begin(self) -> None:
        """Count from now on."""
        self._began = self._reactor.seconds()

    def end(self) -> None:
        """Count no further."""
        self._ended = self._reactor.seconds()

    def flushed(self) -> None:
        """Note that the destination's flush has ended: it was not what took too long."""
        self._has_flushed = True

    def seconds(self, now: float) -> float:
        """Return for how long clients have been parked, or were in the end."""
        if self._began is None:
            return 0.0
        return (now if self._ended is None else self._ended) - self._began

    async def within(self, work: Coroutine[Any, Any, None]) -> None:
        """Do *work* within what is left of the time for which clients may be parked.

        :raises MigrationError: that time is over.
        """
        most = self._convergence.config.max_park
        left = max(0.0, most - self.seconds(self._reactor.seconds()))
        working = Deferred.fromCoroutine(work).addTimeout(left, self._reactor)
        try:
            await working
        except DeferredTimeout:
            if not self._has_flushed:
                self._convergence.flushed_in_vain(most)
            raise MigrationError(
                f"clients were parked for {most:.1f} s, and the handover had not begun: "
                f"{self.waits_for}"
            ) from None
