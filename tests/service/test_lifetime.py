"""A signal is heeded from the moment on at which a server can be told to end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.service.lifetime import SIGNALS, Lifetime


class Reactor:
    """Collects what is to be called, until it runs."""

    def __init__(self) -> None:
        self.running = False
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.stopped = 0

    def call_when_running(self, call: Callable[..., Any], *args: Any) -> None:
        if self.running:
            call(*args)
        else:
            self.calls.append((call, args))

    callWhenRunning = callFromThread = call_when_running  # noqa: N815  # Twisted's names

    def run(self) -> None:
        self.running = True
        for call, args in self.calls:
            call(*args)

    def stop(self) -> None:
        self.stopped += 1


class Signals(SynchronousTestCase):
    """Signals are sent to this thread, the only one of a server that begins. A test runner may have
    others, and one that is sent to the process would be theirs while this one blocks it.
    """

    def setUp(self) -> None:
        for number in SIGNALS:
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.addCleanup(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)
        self.reactor = Reactor()
        self.lifetime = Lifetime(self.reactor)
        self.told: list[str] = []

    def terminate(self, reason: str) -> Deferred[int]:
        self.told.append(reason)
        return succeed(0)

    def test_one_that_comes_before_the_reactor_runs_is_heeded_when_it_does(self) -> None:
        self.lifetime.heed_signals(self.terminate)
        signal.raise_signal(signal.SIGTERM)
        self.assertEqual(self.told, [])
        self.reactor.run()
        self.assertEqual(self.told, ["SIGTERM"])
        self.assertEqual((self.lifetime.status, self.reactor.stopped), (0, 1))

    def test_one_that_comes_while_the_reactor_installs_its_handlers_is_heeded_too(self) -> None:
        self.lifetime.heed_signals(self.terminate)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)  # by default, it would end this process
        self.reactor.run()
        self.assertEqual(self.told, ["SIGTERM"])

    def test_handlers_that_the_reactor_has_installed_are_replaced(self) -> None:
        self.lifetime.heed_signals(self.terminate)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self.reactor.run()
        for number in SIGNALS:
            signal.raise_signal(number)
        self.assertEqual(self.told, ["SIGTERM", "SIGINT", "SIGQUIT"])

    def test_an_ending_that_fails_is_no_success(self) -> None:
        self.lifetime.heed_signals(lambda reason: fail(ValueError("no")))
        self.reactor.run()
        signal.raise_signal(signal.SIGTERM)
        self.assertEqual(self.lifetime.status, 1)

    def test_the_first_decision_stands(self) -> None:
        self.reactor.run()
        self.lifetime.end(1, "first")
        self.lifetime.end(0, "second")
        self.assertEqual((self.lifetime.status, self.reactor.stopped), (1, 1))

    def test_what_fails_after_a_signal_is_told(self) -> None:
        self.lifetime.heed_signals(self.terminate)
        self.reactor.run()
        signal.raise_signal(signal.SIGTERM)
        self.lifetime.failed("the image can't be flushed")
        self.assertEqual(self.lifetime.status, 1)

    def test_what_fails_after_a_migration_does_not_deny_it(self) -> None:
        self.lifetime.end(0, "the image was migrated away")
        self.lifetime.failed("the image can't be flushed")
        self.assertEqual(self.lifetime.status, 0)

    def test_what_fails_before_anything_was_decided_is_told(self) -> None:
        self.lifetime.failed("the image can't be flushed")
        self.assertEqual(self.lifetime.status, 1)
