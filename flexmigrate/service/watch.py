"""One migration, as those see it who look on: its history, its end, and who waits for that.

Nothing here takes part in the migration, and nothing that goes wrong here harms it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from flexmigrate.log import failures
from flexmigrate.migration.source.machine import Core
from flexmigrate.service import migration_values
from flexmigrate.telemetry.history import History, Sample, Summary, Verdict
from flexmigrate.telemetry.states import SourceState

REPORT_SECONDS = 10.0
"""How long a report may take to be written. Its folder may be on a server that doesn't answer, and
the process must not be kept from ending by it."""

Report = Callable[[History, Summary], object]
Look = Callable[[Sample], object]


class Watch:
    """See the module.

    :param address: where the migration goes.
    :param report: keeps what there is to tell in the end; called in a thread of its own.
    :param look: called with each sample.
    :ivar summary: what the migration came to; None while it runs.
    """

    def __init__(
        self,
        reactor: Any,
        core: Core,
        address: str,
        report: Report | None = None,
        look: Look | None = None,
    ) -> None:
        self._reactor = reactor
        self._core = core
        self._report = report
        self._look_on = look
        self._timer: IDelayedCall | None = None
        self._parked_since: float | None = None
        self._parked_before = 0.0
        self._waiters: list[Deferred[Summary]] = []
        self._is_told = False
        self.address = address
        self.history = History()
        self.summary: Summary | None = None

    def start(self) -> None:
        """Look, from now on until the migration has ended."""
        self._core.progress.changed = self._changed
        self._later()

    def parked_seconds(self, now: float) -> float:
        """Return how long clients were parked, in all attempts."""
        since = self._parked_since
        return self._parked_before + (0.0 if since is None else now - since)

    def ended(self, verdict: Verdict, reason: str | None = None) -> Summary:
        """The migration is over; ``conclude`` has to follow."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._reactor.seconds()
        self.summary = migration_values.summary(
            self._core, self.address, verdict, reason, self.parked_seconds(now), now
        )
        self.history.add(self._sample(now))
        return self.summary

    def conclude(self) -> None:
        """Keep the report, then tell those who wait."""
        assert self.summary is not None
        self._keep(self.summary).addCallback(self._tell)

    def wait(self) -> Deferred[Summary]:
        """Fire with what it came to, once it is over and its report is kept."""
        if self._is_told and self.summary is not None:
            return succeed(self.summary)
        waiter: Deferred[Summary] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        return waiter

    def _changed(self) -> None:
        now, state = self._reactor.seconds(), self._core.state
        if state is SourceState.PARKED and self._parked_since is None:
            self._parked_since = now
        elif not state.keeps_clients_waiting:
            self._parked_before = self.parked_seconds(now)
            self._parked_since = None
        self.history.change(self._sample(now))

    def _look(self) -> None:
        self.history.add(self._sample(self._reactor.seconds()))
        self._later()

    def _later(self) -> None:
        self._timer = self._reactor.callLater(self.history.interval, self._look)

    def _sample(self, now: float) -> Sample:
        sample = migration_values.sample(self._core, now)
        if self._look_on is not None:
            try:
                self._look_on(sample)
            except Exception:  # noqa: BLE001  # it is somebody else's code, and only looks on
                self._core.logger.failure(
                    "an observer of the migration failed with an unexpected error"
                )
        return sample

    def _keep(self, summary: Summary) -> Deferred[Any]:
        if self._report is None or summary.verdict == "failed":
            return succeed(None)  # of what never began, there is nothing to report
        report, history = self._report, self.history
        keeping = in_own_thread(self._reactor, lambda: report(history, summary))
        keeping.addTimeout(REPORT_SECONDS, self._reactor)
        return keeping.addErrback(self._not_kept)

    def _not_kept(self, failure: Failure) -> None:
        """It's a pity, and nothing more: the migration is over, and went as it went."""
        log = self._core.logger
        if failure.check(DeferredTimeout):
            log.warn("the report was not written within {seconds:g} s", seconds=REPORT_SECONDS)
        elif failure.check(OSError):
            log.warn("the report can't be written: {error}", error=failures.reason(failure))
        else:
            log.failure("the report failed with an unexpected error", failure)

    def _tell(self, _: object) -> None:
        assert self.summary is not None
        self._is_told = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(self.summary)


def in_own_thread(reactor: Any, work: Callable[[], object]) -> Deferred[object]:
    """Do *work* in a thread that nobody waits for when the process ends."""
    answer: Deferred[object] = Deferred()

    def run() -> None:
        try:
            result: object = work()
        except Exception:  # noqa: BLE001  # whatever it is, it is the answer
            result = Failure()
        reactor.callFromThread(answer.callback, result)

    threading.Thread(target=run, name="report", daemon=True).start()
    return answer
