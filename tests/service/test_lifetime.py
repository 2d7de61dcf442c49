"""A signal is heeded from the moment on at which a server can be told to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.service.lifetime import SIGNALS, Lifetime


class Reactor:
    """Collects what is to be called, until it runs."""

    def __init__(self) -> None:
        self.running = False
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.triggers: list[Callable[[], Any]] = []
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

    def addSystemEventTrigger(
        self, phase: str, event: str, call: Callable[..., Any], *args: Any
    ) -> None:
        assert (phase, event) == ("after", "shutdown")
        self.triggers.append(lambda: call(*args))

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
        self.assertEqual(self.told, ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP"])

    def test_none_changes_anything_once_the_reactor_has_stopped(self) -> None:
        self.lifetime.heed_signals(self.terminate)
        self.reactor.run()
        signal.raise_signal(signal.SIGTERM)
        for trigger in self.reactor.triggers:
            trigger()
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)  # as Twisted and the interpreter do
            signal.pthread_kill(threading.get_ident(), number)
        self.assertEqual(signal.sigpending() & set(SIGNALS), set(SIGNALS))
        self.assertEqual(self.lifetime.status, 0)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # which forgets them
        self.assertEqual(signal.sigpending() & set(SIGNALS), set())

    def test_sighup_reloads_where_something_can_be(self) -> None:
        reloaded: list[str] = []
        self.lifetime.heed_signals(self.terminate, lambda: reloaded.append("once"))
        self.reactor.run()
        signal.raise_signal(signal.SIGHUP)
        self.assertEqual((self.told, reloaded, self.lifetime.status), ([], ["once"], None))
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        self.assertEqual(reloaded, ["once"])

    def test_a_sighup_that_is_ignored_stays_so(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.lifetime.heed_signals(self.terminate)
        self.reactor.run()
        signal.raise_signal(signal.SIGHUP)
        self.assertEqual(self.told, [])
        self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)

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
        with capturedLogs() as told:
            self.lifetime.failed("the image can't be flushed")
        self.assertEqual(self.lifetime.status, 1)
        last = "ending with status 1: the image can't be flushed"
        self.assertEqual(formatEvent(told[-1]), last)

    def test_what_fails_after_a_migration_does_not_deny_it(self) -> None:
        self.lifetime.end(0, "the image was migrated away")
        self.lifetime.failed("the image can't be flushed")
        self.assertEqual(self.lifetime.status, 0)

    def test_what_fails_before_anything_was_decided_is_told(self) -> None:
        self.lifetime.failed("the image can't be flushed")
        self.assertEqual(self.lifetime.status, 1)
