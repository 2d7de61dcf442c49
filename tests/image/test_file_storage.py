import queue
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.threadpool import ThreadPool
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image import cold_reads
from flexmigrate.image.extents import Extent
from flexmigrate.image.file import Image
from flexmigrate.image.file_storage import FileStorage
from flexmigrate.image.kernel.ring_reader import LONGEST

FULL = OSError(28, "No space left on device")


class FakeReactor:
    """Says at once, in the thread that asked, what is to be said in the reactor's."""

    def callFromThread(self, call: Callable[..., Any], *args: Any) -> None:  # noqa: N802
        call(*args)


class FakePool:
    """Does its work one piece at a time, when the test says so."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Any, ...]] = deque()

    def callInThreadWithCallback(self, answer: Any, call: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N802
        self.waiting.append((answer, call, args, kwargs))

    def work(self) -> None:
        answer, call, args, kwargs = self.waiting.popleft()
        try:
            result = call(*args, **kwargs)
        except OSError as error:
            answer(False, error)
        else:
            answer(True, result)


class FakeImage:
    """Records its calls; a flush ends as the test has said."""

    is_local = True

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.flush_errors: deque[OSError | None] = deque()

    def flush(self) -> None:
        self.calls.append("flush")
        error = self.flush_errors.popleft() if self.flush_errors else None
        if error is not None:
            raise error

    def __getattr__(self, name: str) -> Callable[..., str]:
        def record(*args: Any, **kwargs: Any) -> str:
            self.calls.append((name, *args, *kwargs.items()))
            return f"{name} done"

        return record


class WithAFakePool(SynchronousTestCase):
    def setUp(self) -> None:
        self.image, self.pool = FakeImage(), FakePool()
        self.storage = FileStorage(
            cast(Image, self.image),
            cast(IReactorFromThreads, FakeReactor()),
            cast(ThreadPool, self.pool),
        )

    def work_all(self) -> None:
        while self.pool.waiting:
            self.pool.work()


class Calls(WithAFakePool):
    def test_each_goes_to_the_image_as_it_is_in_a_thread(self) -> None:
        storage = self.storage
        answers: list[Deferred[Any]] = [
            storage.read(0, 512),
            storage.write(b"data", 512),
            storage.zero(0, 4096, may_punch=True, fast_only=True),
            storage.trim(4096, 4096),
            storage.bring_in(0, 8192, whole=True),
        ]
        self.assertEqual((self.image.calls, storage.pending), ([], 5))
        self.work_all()
        results: list[Any] = [
            f"{name} done" for name in ("read", "write_in_thread", "zero", "trim")
        ]
        self.assertEqual(
            [self.successResultOf(answer) for answer in answers],
            [*results, (self.image, [Extent(0, 8192, True)])],
        )
        self.assertEqual(
            self.image.calls,
            [
                ("read", 0, 512),
                ("write_in_thread", b"data", 512),
                ("zero", 0, 4096, ("may_punch", True), ("fast_only", True)),
                ("trim", 4096, 4096),
                ("make_resident", 0, 8192),
            ],
        )
        self.assertEqual(storage.pending, 0)

    def test_an_error_is_the_one_that_was_raised(self) -> None:
        def fail() -> None:
            raise FULL

        answer = self.storage.run(fail)
        self.pool.work()
        self.assertIs(self.failureResultOf(answer, OSError).value, FULL)
        self.assertEqual(self.storage.pending, 0)

    def test_a_cancelled_call_is_pending_until_its_thread_has_ended(self) -> None:
        answer = self.storage.read(0, 512)
        idle = self.storage.drained()
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        self.assertEqual(self.storage.pending, 1)
        self.assertNoResult(idle)
        self.pool.work()
        self.successResultOf(idle)


class GroupCommit(WithAFakePool):
    def test_one_flush_is_one_sync(self) -> None:
        answer = self.storage.flush()
        self.assertNoResult(answer)
        self.work_all()
        self.successResultOf(answer)
        self.assertEqual(self.image.calls, ["flush"])

    def test_those_who_come_during_a_sync_share_the_next_and_not_that_one(self) -> None:
        first = self.storage.flush()
        others = [self.storage.flush() for _ in range(5)]
        self.assertEqual(len(self.pool.waiting), 1)
        self.pool.work()
        self.successResultOf(first)
        for other in others:
            self.assertNoResult(other)
        self.pool.work()
        for other in others:
            self.successResultOf(other)
        self.assertEqual(self.image.calls, ["flush", "flush"])
        self.assertEqual((self.storage.pending, len(self.pool.waiting)), (0, 0))

    def test_an_error_is_given_to_all_who_waited_and_to_nobody_else(self) -> None:
        self.image.flush_errors.extend([None, FULL, None])
        first = self.storage.flush()
        second, third = self.storage.flush(), self.storage.flush()
        self.pool.work()
        fourth = self.storage.flush()
        self.pool.work()
        self.successResultOf(first)
        for answer in (second, third):
            self.assertIs(self.failureResultOf(answer, OSError).value, FULL)
        self.assertNoResult(fourth)
        self.pool.work()
        self.successResultOf(fourth)

    def test_a_flush_asked_for_by_an_answer_waits_for_a_sync_of_its_own(self) -> None:
        again: list[Deferred[None]] = []
        self.storage.flush().addCallback(lambda _: again.append(self.storage.flush()))
        self.pool.work()
        self.assertNoResult(again[0])
        self.pool.work()
        self.successResultOf(again[0])

    def test_a_cancelled_flush_takes_no_other_with_it(self) -> None:
        first, second = self.storage.flush(), self.storage.flush()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.work_all()
        self.successResultOf(second)
        self.assertEqual(self.storage.pending, 0)


class Drained(WithAFakePool):
    def test_at_once_when_nothing_is_pending(self) -> None:
        self.successResultOf(self.storage.drained())

    def test_only_when_the_last_of_all_kinds_is_done(self) -> None:
        self.storage.read(0, 512)
        self.storage.flush()
        self.storage.flush()
        waiters = [self.storage.drained(), self.storage.drained()]
        while self.pool.waiting:
            for idle in waiters:
                self.assertNoResult(idle)
            self.pool.work()
        for idle in waiters:
            self.successResultOf(idle)

    def test_after_the_callbacks_of_the_last_call_where_its_blocks_are_marked(self) -> None:
        order: list[str] = []
        answer = self.storage.write(b"data", 0)
        answer.addCallback(lambda _: order.append("marked"))
        self.storage.drained().addCallback(lambda _: order.append("drained"))
        self.pool.work()
        self.assertEqual(order, ["marked", "drained"])

    def test_not_before_what_a_callback_began(self) -> None:
        self.storage.write(b"data", 0).addCallback(lambda _: self.storage.flush())
        idle = self.storage.drained()
        self.pool.work()
        self.assertNoResult(idle)
        self.pool.work()
        self.successResultOf(idle)

    def test_who_is_told_may_begin_anew_and_the_next_then_waits(self) -> None:
        self.storage.read(0, 512)
        begun: list[Deferred[bytes]] = []
        first = self.storage.drained()
        first.addCallback(lambda _: begun.append(self.storage.read(0, 512)))
        second = self.storage.drained()
        self.pool.work()
        self.assertNoResult(second)
        self.pool.work()
        self.successResultOf(begun[0])
        self.successResultOf(second)


class FakeRing:
    """Takes so many reads; they end as the test says."""

    def __init__(self, told: Callable[[list[Any]], object], room: int) -> None:
        self.told, self.room = told, room
        self.begun: list[tuple[Any, Any]] = []
        self.closed = False

    def begin(self, fd: str, wanted: list[Any], about: Any) -> list[Any]:
        taken = wanted[: self.room - len(self.begun)]
        self.begun += [(each, about) for each in taken]
        return wanted[len(taken) :]

    def end(self, *data: bytes | None) -> None:
        """End the first reads with these bytes."""
        ended, self.begun = self.begun[: len(data)], self.begun[len(data) :]
        self.told([(*each, found) for each, found in zip(ended, data, strict=True)])

    def close(self) -> None:
        self.closed = True


class ShortReads(WithAFakePool):
    """Short reads, with a ring and without."""

    def setUp(self) -> None:
        super().setUp()
        self.rings: list[FakeRing] = []
        self.outcomes: list[Any] = []
        self.image.fd = "fd"  # type: ignore[attr-defined]
        self.image.is_hole = lambda view, offset: not any(view)  # type: ignore[attr-defined]
        self.image.read = lambda offset, length: b"read"  # type: ignore[attr-defined]

    def with_ring(self, room: int = 8) -> None:
        def new(reactor: Any, told: Any) -> FakeRing:
            self.rings.append(FakeRing(told, room))
            return self.rings[-1]

        self.patch(cold_reads, "short_reads", new)

    def answer(self, outcomes: list[Any]) -> None:
        self.outcomes.append([(each[0], outcome and bytes(outcome)) for each, outcome in outcomes])

    def ask(self, *keys: int, whole: bool = True) -> None:
        self.storage.read_short([(key, 0, 4) for key in keys], self.answer, whole=whole)

    def test_without_a_ring_threads_read_eight_each(self) -> None:
        self.ask(*range(9))
        self.assertEqual(self.storage.pending, 2)
        self.work_all()
        self.assertEqual(self.outcomes, [[(key, b"read") for key in range(8)], [(8, b"read")]])
        self.assertEqual(self.storage.pending, 0)

    def test_what_has_ended_is_answered_together_whenever_it_was_asked(self) -> None:
        self.with_ring()
        self.ask(1, 2)
        self.ask(3)
        self.rings[0].end(b"data", b"more", b"last")
        self.assertEqual(self.outcomes, [[(1, b"data"), (2, b"more"), (3, b"last")]])

    def test_a_hole_is_told_as_one_unless_it_must_not_be(self) -> None:
        self.with_ring()
        self.ask(1, whole=False)
        self.ask(2)
        self.rings[0].end(bytes(4), bytes(4))
        self.assertEqual(self.outcomes, [[(1, None)], [(2, bytes(4))]])

    def test_drained_waits_for_the_ring(self) -> None:
        self.with_ring()
        self.ask(1)
        idle = self.storage.drained()
        self.assertNoResult(idle)
        self.rings[0].end(b"data")
        self.successResultOf(idle)
        self.storage.close()
        self.assertTrue(self.rings[0].closed)

    def test_what_a_ring_has_no_room_for_is_read_by_threads(self) -> None:
        self.with_ring(room=2)
        self.ask(1, 2, 3)
        self.assertEqual(self.storage.pending, 3)
        self.work_all()
        self.assertEqual(self.outcomes, [[(3, b"read")]])
        self.rings[0].end(b"data", b"data")
        self.assertEqual(self.storage.pending, 0)

    def test_what_a_ring_could_not_read_is_read_by_a_thread_before_all_is_drained(self) -> None:
        self.with_ring()
        self.ask(1, 2)
        idle = self.storage.drained()
        self.rings[0].end(None, b"data")
        self.assertEqual(self.outcomes, [[(2, b"data")]])
        self.assertNoResult(idle)
        self.work_all()
        self.assertEqual(self.outcomes[1:], [[(1, b"read")]])
        self.successResultOf(idle)

    def test_whoever_hears_that_all_is_done_may_close_at_once(self) -> None:
        self.with_ring()
        self.ask(1)
        self.storage.drained().addCallback(lambda _: self.storage.close())
        self.rings[0].end(b"data")
        self.assertTrue(self.rings[0].closed)

    def test_one_longer_than_a_slot_takes_a_thread(self) -> None:
        self.with_ring()
        self.storage.read_short([(1, 0, LONGEST + 1)], self.answer, whole=True)
        self.work_all()
        self.assertEqual(self.outcomes, [[(1, b"read")]])

    def test_an_asker_with_a_bug_keeps_nobody_from_his_answer(self) -> None:
        self.with_ring()
        self.storage.read_short([(1, 0, 4)], lambda _: 1 / 0, whole=True)
        self.ask(2)
        self.rings[0].end(b"data", b"data")
        self.assertEqual(self.outcomes, [[(2, b"data")]])
        self.assertEqual(self.storage.pending, 0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class WithThreads(SynchronousTestCase):
    def test_work_is_done_in_a_thread_and_answered_through_the_reactor(self) -> None:
        pool = ThreadPool(0, 2)
        pool.start()
        self.addCleanup(pool.stop)
        calls: queue.Queue[tuple[Any, ...]] = queue.Queue()

        class Reactor:
            def callFromThread(self, *call: Any) -> None:  # noqa: N802
                calls.put(call)

        image = FakeImage()
        slow = FileStorage(cast(Image, image), cast(IReactorFromThreads, Reactor()), pool)
        answers: list[Deferred[Any]] = [slow.read(0, 512), slow.flush()]
        for _ in answers:
            call, *args = calls.get(timeout=60)
            call(*args)
        for answer in answers:
            self.successResultOf(answer)
        self.assertEqual(sorted(map(str, image.calls)), ["('read', 0, 512)", "flush"])
