"""Several connections used as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.client.bundle import Bundle
from flexmigrate.errors import ConnectFailed, ConnectionGone
from flexmigrate.wire.constants import TransmissionFlag

MIB = 1 << 20
FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.CAN_MULTI_CONN


class RecordedConnection:
    """Answers when the test says so; as strict as a connection about when it may be waited for."""

    def __init__(self, size: int = MIB, flags: TransmissionFlag = FLAGS) -> None:
        self.size = size
        self.flags = flags
        self.failure: Exception | None = None
        self.writable = True
        self.last_progress = 0.0
        self.asked: list[tuple[Any, ...]] = []
        self.in_flight: list[Deferred[None]] = []
        self.disconnected = False
        self._closed: list[Deferred[None]] = []
        self._over = False
        self.waiters: list[Deferred[None]] = []

    @property
    def requests_in_flight(self) -> int:
        return len(self.in_flight)

    def _ask(self, *what: Any) -> Deferred[None]:
        self.asked.append(what)
        answer: Deferred[None] = Deferred()
        self.in_flight.append(answer)
        return answer

    def write(self, data: Any, offset: int) -> Deferred[None]:
        return self._ask("write", offset, len(data))

    def write_from(self, source: Any, offset: int, length: int) -> Deferred[None]:
        return self._ask("write_from", offset, length)

    def zero(self, offset: int, length: int) -> Deferred[None]:
        return self._ask("zero", offset, length)

    def flush(self) -> Deferred[None]:
        return self._ask("flush")

    def when_writable(self) -> Deferred[None]:
        if self._over:
            return fail(self.failure or ConnectionGone("it was closed"))
        if self.writable:
            return succeed(None)
        self.waiters.append(Deferred())
        return self.waiters[-1]

    def drain(self) -> None:
        self.writable = True
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def when_closed(self) -> Deferred[None]:
        if self._over:
            return succeed(None)
        self._closed.append(Deferred())
        return self._closed[-1]

    def disconnect(self) -> Deferred[None]:
        self.disconnected = True
        return Deferred()

    def abort(self, reason: Exception) -> None:
        self.end(reason)

    def end(self, reason: Exception | None) -> None:
        if self._over:
            return
        self._over, self.failure, self.writable = True, reason, False
        error = reason or ConnectionGone("it was closed")
        waiting, self.in_flight, self.waiters = [*self.in_flight, *self.waiters], [], []
        for each in waiting:
            each.errback(error)
        for closed in self._closed:
            closed.callback(None)


class BundleCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.first = RecordedConnection()
        first: Any = self.first
        self.bundle = Bundle(first)

    def join(self, count: int) -> list[RecordedConnection]:
        others = [RecordedConnection() for _ in range(count)]
        for each in others:
            other: Any = each
            self.bundle.expect(succeed(other))
        return [self.first, *others]


class SendingTests(BundleCase):
    def test_requests_go_where_least_is_under_way(self) -> None:
        connections = self.join(2)
        for number in range(6):
            self.bundle.write(b"x" * 512, number * 512)
        self.assertEqual([each.requests_in_flight for each in connections], [2, 2, 2])
        self.assertEqual(self.bundle.requests_in_flight, 6)
        connections[1].in_flight.pop(0).callback(None)
        source: Any = None
        self.bundle.write_from(source, 8192, 512)
        self.assertEqual(connections[1].asked[-1], ("write_from", 8192, 512))

    def test_they_do_not_go_where_they_would_have_to_wait(self) -> None:
        connections = self.join(1)
        self.first.writable = False
        for _ in range(3):
            self.assertTrue(self.bundle.writable)
            self.bundle.zero(0, 512)
        self.assertEqual([each.requests_in_flight for each in connections], [0, 3])

    def test_a_flush_is_asked_once(self) -> None:
        connections = self.join(3)
        self.bundle.flush()
        self.assertEqual([each.asked for each in connections], [[("flush",)], [], [], []])

    def test_any_connection_that_is_writable_again_will_do(self) -> None:
        connections = self.join(2)
        for round_ in range(3):
            for each in connections:
                each.writable = False
            waiting = self.bundle.when_writable()
            self.assertNoResult(waiting)
            # However often it is waited, a connection that stays full keeps one waiter.
            self.assertLessEqual(max(len(each.waiters) for each in connections), 1)
            connections[round_].drain()
            self.successResultOf(waiting)
        self.successResultOf(self.bundle.when_writable())

    def test_one_that_joins_is_writable(self) -> None:
        self.first.writable = False
        waiting = self.bundle.when_writable()
        self.join(1)
        self.successResultOf(waiting)

    def test_progress_is_that_of_who_stalls(self) -> None:
        connections = self.join(2)
        for number, each in enumerate(connections):
            each.last_progress = 10.0 + number
        self.assertEqual(self.bundle.last_progress, 10.0)
        connections[1].write(b"x", 0)
        connections[2].write(b"x", 0)
        self.assertEqual(self.bundle.last_progress, 11.0)


class LifeTests(BundleCase):
    ENDS: tuple[Callable[[BundleCase], None], ...] = (
        lambda case: case.first.abort(ConnectionGone("given up")),
        lambda case: case.bundle.dismiss_others(),
    )

    def test_nobody_waits_for_others(self) -> None:
        dialled: Deferred[Any] = Deferred()
        self.bundle.expect(dialled)
        self.bundle.write(b"x", 0)
        self.assertEqual(self.first.requests_in_flight, 1)
        other = RecordedConnection()
        dialled.callback(other)
        self.bundle.write(b"x", 512)
        self.assertEqual(other.requests_in_flight, 1)

    def test_others_that_do_not_come_are_done_without(self) -> None:
        self.bundle.expect(fail(ConnectFailed("no connection to the server: refused")))
        self.bundle.write(b"x", 0)
        self.assertIsNone(self.first.failure)

    def test_one_that_has_another_export_is_not_used(self) -> None:
        for other in (RecordedConnection(size=512), RecordedConnection(flags=FLAGS.HAS_FLAGS)):
            given: Any = other
            self.bundle.expect(succeed(given))
            self.assertIsNotNone(other.failure)
            self.assertIsNone(self.first.failure)
        self.bundle.write(b"x", 0)
        self.assertEqual(self.first.requests_in_flight, 1)

    def test_the_end_of_any_is_the_end_of_all(self) -> None:
        for which in range(3):
            self.setUp()
            connections = self.join(2)
            answers = [self.bundle.write(b"x", 0) for _ in range(3)]
            connections[which].end(ConnectionGone("lost") if which else None)
            for answer in answers:
                self.failureResultOf(answer, ConnectionGone)
            for each in connections[:which] + connections[which + 1 :]:
                self.assertIsInstance(each.failure, ConnectionGone)

    def test_who_waits_hears_of_the_end(self) -> None:
        for each in self.join(1):
            each.writable = False
        waiting = self.bundle.when_writable()
        self.first.abort(ConnectionGone("given up"))
        self.failureResultOf(waiting, ConnectionGone)
        self.failureResultOf(self.bundle.when_writable(), ConnectionGone)

    def test_an_end_calls_off_who_is_expected(self) -> None:
        for end in self.ENDS:
            dialled: Deferred[Any] = Deferred()
            cancelled: list[object] = []
            dialled.addErrback(lambda failure, seen=cancelled: seen.append(failure) or failure)
            self.bundle.expect(dialled)
            end(self)
            self.assertEqual(len(cancelled), 1)
            self.successResultOf(dialled)
            self.setUp()

    def test_one_that_comes_too_late_is_ended(self) -> None:
        for end in self.ENDS:
            end(self)
            _, other = self.join(1)
            self.assertIsNotNone(other.failure)
            self.setUp()

    def test_others_take_leave_and_the_first_stays(self) -> None:
        connections = self.join(2)
        self.bundle.dismiss_others()
        self.assertEqual([each.disconnected for each in connections], [False, True, True])
        connections[1].end(None)
        connections[2].end(ConnectionGone("a reset"))
        self.assertIsNone(self.first.failure)
        self.bundle.write(b"x", 0)
        self.assertEqual(self.first.requests_in_flight, 1)
