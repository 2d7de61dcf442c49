"""The moment of the switchover: passes are sent until clients may be parked for what is left, and
nothing is known to be in the way of the handover.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from flexmigrate.migration.source.backoff import Backoff
from flexmigrate.migration.source.convergence import Convergence, ConvergenceVerdict
from flexmigrate.migration.source.handover import HandoverTerms, SourceHandover
from flexmigrate.migration.source.passes import Passes
from flexmigrate.server.export import Export

LOOK_SECONDS = 5.0
"""Validity, in seconds, of a check that the handover could be recorded; it takes some writes."""


class Switchover:
    """Waits for the moment.

    :param about: the migration, for logs.
    :ivar obstacle: why clients aren't parked though so little is left that they could be, in words;
        None: nothing is in the way, as far as is known.
    """

    def __init__(
        self,
        reactor: Any,
        export: Export,
        terms: HandoverTerms,
        convergence: Convergence,
        passes: Passes,
        about: object = None,
    ) -> None:
        self._reactor = reactor
        self._export = export
        self._terms = terms
        self._convergence = convergence
        self._passes = passes
        self._log = Logger(source=about)
        self._retry: IDelayedCall | None = None
        self._looked_at: float | None = None
        self.obstacle: str | None = None

    async def reach(self, handover: SourceHandover) -> None:
        """Send passes until the moment has come."""
        convergence, passes = self._convergence, self._passes
        backoff = Backoff()
        while True:
            now = self._reactor.seconds()
            throttle = self._export.throttle
            before = convergence.verdict, convergence.allowed
            enough = convergence.after(passes.last, throttle.longest_wait if throttle else 0.0, now)
            passes.adjust()
            self._tell(*before)
            if enough:
                if await self._is_free(handover):
                    return
                if self.obstacle is not None:
                    await self._wait(backoff)
                    if self._still_fits() and await self._is_free(handover):
                        return  # it was a matter of what is asked for
            # Where parking was put off, it has to be seen how long the next flush takes.
            await passes.send(flush_again=enough)

    def hurry(self) -> None:
        """Look at once whether something is in the way still."""
        if self._retry is not None and self._retry.active():
            self._retry.reset(0)

    def _still_fits(self) -> bool:
        return self._passes.left <= self._convergence.fitting(self._reactor.seconds())

    async def _is_free(self, handover: SourceHandover) -> bool:
        """Return whether nothing is in the way of a handover now, and tell of what is."""
        left = self._passes.left
        obstacle = self._convergence.obstacle(left, prepares=handover.is_session)
        if obstacle is not None and self._passes.number == 1:
            return False  # the flush of so much says little about the next
        if obstacle is None and not self._has_looked():
            await self._terms.check_name()
            obstacle = await handover.obstacle()
            self._looked_at = None if obstacle else self._reactor.seconds()
        self._tell_obstacle(obstacle)
        # To look took a while: what was changed meanwhile may be too much to park for.
        return obstacle is None and self._passes.left <= left

    def _has_looked(self) -> bool:
        """Return whether it was checked just now that the handover can be recorded."""
        at = self._looked_at
        return at is not None and self._reactor.seconds() - at < LOOK_SECONDS

    def _tell_obstacle(self, obstacle: str | None) -> None:
        """Keep what is in the way, if anything is; tell of it once, since its figures change."""
        if obstacle is not None and self.obstacle is None:
            self._log.error(
                "clients are not parked, since that would be in vain: {obstacle}", obstacle=obstacle
            )
        if obstacle is None and self.obstacle is not None:
            self._log.info("the obstacle to the handover is gone")
        if obstacle is not None:
            self._convergence.free_writers()
            self._passes.adjust()
        self.obstacle = obstacle

    async def _wait(self, backoff: Backoff) -> None:
        """Wait before it is looked again whether something is in the way; a change of what was
        asked for ends that.
        """
        waiting: Deferred[None] = Deferred(lambda _: self._end_waiting())
        self._retry = self._reactor.callLater(backoff.failed(), waiting.callback, None)
        try:
            await waiting
        finally:
            self._end_waiting()

    def _end_waiting(self) -> None:
        retry, self._retry = self._retry, None
        if retry is not None and retry.active():
            retry.cancel()

    def _tell(self, verdict: ConvergenceVerdict, allowed: float) -> None:
        """Tell the log of what is new since *verdict* and *allowed*."""
        convergence = self._convergence
        if convergence.verdict not in (verdict, ConvergenceVerdict.THROTTLING):
            self._log.info(
                "{verdict}: clients dirty {dirty:.0f} bytes/s, {rate:.0f} bytes/s can be sent",
                verdict=convergence.verdict.value,
                dirty=convergence.dirty_rate(self._reactor.seconds()),
                rate=convergence.send_rate,
            )
        if convergence.allowed > allowed:
            self._log.warn(
                "clients would have to be slowed down too much: they may be parked for {seconds:g} "
                "s instead",
                seconds=convergence.allowed,
            )
