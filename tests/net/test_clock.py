"""A reactor's clock is changed, and what was scheduled comes when it would have."""

from __future__ import annotations

import ast
import time
from collections import Counter
from pathlib import Path
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

import flexmigrate
from flexmigrate.net.clock import use_monotonic_clock


class Reactor(EPollReactor):
    """One that isn't the process's own, and whose first clock is a day ahead of itself."""

    now = staticmethod(lambda: time.monotonic() + 86400)
    seconds = now


class UseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor: Any = Reactor()
        self.addCleanup(self.reactor._poller.close)

    def test_it_is_the_monotonic_one(self) -> None:
        use_monotonic_clock(self.reactor)
        before = time.monotonic()
        self.assertTrue(before <= self.reactor.seconds() <= time.monotonic())

    def test_what_is_scheduled_keeps_the_time_that_is_left_to_it(self) -> None:
        calls = [self.reactor.callLater(delay, lambda: None) for delay in (30, 10, 20)]
        self.reactor.timeout()  # has these moved to where they are sorted
        calls[1].cancel()
        calls.append(self.reactor.callLater(5, lambda: None))
        use_monotonic_clock(self.reactor)
        use_monotonic_clock(self.reactor)
        left = [each.getTime() - time.monotonic() for each in (calls[0], calls[2], calls[3])]
        for found, meant in zip(left, (30, 20, 5), strict=True):
            self.assertTrue(meant - 5 < found <= meant, left)
        self.assertTrue(0 < self.reactor.timeout() <= 5)

    def test_one_that_is_due_is_called(self) -> None:
        called: list[int] = []
        self.reactor.callLater(0, called.append, 1)
        self.reactor.callLater(60, called.append, 2)
        use_monotonic_clock(self.reactor)
        self.reactor.runUntilCurrent()
        self.assertEqual(called, [1])

    def test_one_can_be_put_off_afterwards(self) -> None:
        call = self.reactor.callLater(5, lambda: None)
        use_monotonic_clock(self.reactor)
        call.reset(100)
        self.assertTrue(95 < call.getTime() - time.monotonic() <= 100)

    def test_what_is_no_reactor_of_twisted_is_refused(self) -> None:
        self.assertRaises(TypeError, use_monotonic_clock, Clock())


# Who asks for the time of day, how often, and what for. Nothing else may: a duration, or a moment
# at which something is to be done, is the monotonic clock's.
WALL_CLOCK = {
    "cli/doctor/certificates.py": 1,  # until when one is valid
    "image/durability.py": 1,  # for people: when a flush failed
    "image/flush_failure.py": 1,  # likewise, in the note about it
    "log/layouts.py": 1,  # when an event was, for a layout that has the monotonic clock
    "log/observer.py": 1,  # the time of a line of the log
    "migration/ownership/journal.py": 1,  # for people who read a journal
    "service/migrating.py": 1,  # for people who read a report
}
CALLS = {
    *("time.time", "time.time_ns", "time.clock_gettime", "time.localtime", "time.gmtime"),
    *("time.ctime", "time.strftime"),
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
    *("runtime.seconds", "platform.seconds"),
}


def wall_clocks(path: Path) -> int:
    """Return how many times a module asks for the time of day."""
    found = 0
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found += ".".join(ast.unparse(node).split(".")[-2:]) in CALLS
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").rpartition(".")[2]
            found += sum(f"{module}.{each.name}" in CALLS for each in node.names)
    return found


class TimeOfDayTests(SynchronousTestCase):
    def test_is_asked_for_where_it_is_meant(self) -> None:
        package = Path(flexmigrate.__file__).parent
        counts = {
            str(path.relative_to(package)): wall_clocks(path) for path in package.rglob("*.py")
        }
        self.assertEqual(+Counter(counts), Counter(WALL_CLOCK))
