from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.server.holds import Holds
from flexmigrate.server.throttle import LATENESS, MAX_CHARGE, SHORTEST_WAIT, Throttle

KIB = 1024


class Meter:
    """What everybody has made dirty."""

    def __init__(self) -> None:
        self.bytes = 12345  # whatever it was before

    def __call__(self) -> int:
        return self.bytes


class Writer:
    """Writes *batch* bytes whenever it may, and notes when.

    :param busy: whether it goes on by itself.
    """

    def __init__(self, clock: Clock, batch: int, *, busy: bool = True) -> None:
        self.clock = clock
        self.batch = batch
        self.busy = busy
        self.throttle: Throttle | None = None
        self.meter = Meter()
        self.held = False
        self.done: list[tuple[float, int]] = []

    def hold(self, reason: int) -> None:
        assert reason == Holds.THROTTLED
        assert not self.held
        self.held = True

    def release(self, reason: int) -> None:
        assert reason == Holds.THROTTLED
        assert self.held
        self.held = False
        if self.busy:
            self.write()

    def write(self) -> None:
        """Until it is held."""
        while not self.held:
            self.done.append((self.clock.seconds(), self.batch))
            if self.throttle is None:
                return
            self.meter.bytes += self.batch
            self.throttle.charge(self)
            if not self.busy:
                return

    @property
    def written(self) -> int:
        return sum(length for _, length in self.done)

    def longest_gap(self) -> float:
        times = [time for time, _ in self.done] + [self.clock.seconds()]
        return max(later - sooner for sooner, later in itertools.pairwise(times))


def run(clock: Clock, seconds: float, step: float) -> None:
    for _ in range(round(seconds / step)):
        clock.advance(step)


class ThrottleTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.meter = Meter()

    def throttle(self, rate: float, *writers: Writer) -> Throttle:
        throttle = Throttle(self.clock, rate, self.meter)
        for writer in writers:
            writer.throttle, writer.meter = throttle, self.meter
            writer.write()
        return throttle

    def batches(self, *sizes: int) -> list[Writer]:
        return [Writer(self.clock, size) for size in sizes]

    def test_one_writer_gets_what_may_be_written(self) -> None:
        for rate in (5_000, 1_000_000, 200_000_000):
            (writer,) = self.batches(32 * KIB)
            self.throttle(rate, writer)
            # Timers that are a millisecond late, as those of a reactor are.
            run(self.clock, 20, 0.001)
            fair = rate * 20
            self.assertLess(abs(writer.written - fair), fair * 0.02 + 2 * writer.batch)

    @settings(deadline=None, max_examples=50)
    @given(
        st.integers(10_000, 10**9),
        st.lists(st.integers(1, 256 * KIB), min_size=1, max_size=12),
        st.integers(1, 20),
    )
    def test_all_together_keep_to_the_rate_and_nobody_starves(
        self, rate: int, sizes: list[int], milliseconds: int
    ) -> None:
        self.clock = Clock()
        writers = [Writer(self.clock, max(size, rate // 1000)) for size in sizes]
        self.throttle(rate, *writers)
        share = rate / len(writers)
        seconds = 3 * max(writer.batch for writer in writers) / share + 1
        step = milliseconds / 1000
        steps = min(round(seconds / step) + 1, 3000)
        for _ in range(steps):
            self.clock.advance(step)
        passed = steps * step
        total = sum(writer.written for writer in writers)
        # A batch is taken before it is paid for, and timers may be late for so long.
        slack = 2 * sum(writer.batch for writer in writers) + rate * LATENESS
        self.assertLessEqual(total, rate * (passed + SHORTEST_WAIT) + slack)
        for writer in writers:
            # What is too short to wait for is waited for with the next batch.
            owed = writer.batch + rate * SHORTEST_WAIT
            self.assertLessEqual(writer.longest_gap(), owed / share * 1.001 + 2 * step)

    def test_small_and_large_requests_get_equal_shares(self) -> None:
        writers = self.batches(4 * KIB, 256 * KIB, 32 * KIB, 1000 * KIB)
        self.throttle(10_000_000, *writers)
        run(self.clock, 20, 0.001)
        for writer in writers:
            # Timers that are late cost the small ones more: they need more of them.
            self.assertLess(abs(writer.written - 50_000_000), 10_000_000, writer.batch)

    def test_what_one_leaves_the_others_get(self) -> None:
        busy, idle = self.batches(64 * KIB, 64 * KIB)
        idle.busy = False
        self.throttle(1_000_000, busy, idle)
        run(self.clock, 10, 0.001)
        self.assertEqual(idle.written, 64 * KIB)
        self.assertLess(abs(busy.written - 10_000_000), 300_000)

    def test_who_writes_less_than_its_share_never_waits_for_long(self) -> None:
        greedy, modest = self.batches(256 * KIB, 4 * KIB)
        modest.busy = False
        self.throttle(1_000_000, greedy, modest)
        for _ in range(500):
            run(self.clock, 0.02, 0.001)
            self.assertFalse(modest.held)
            modest.write()

    def test_many_small_writes_are_paid_for_although_each_is_too_short_to_wait_for(self) -> None:
        writers = self.batches(*[512] * 50)
        self.throttle(1_000_000, *writers)
        run(self.clock, 5, 0.001)
        total = sum(writer.written for writer in writers)
        self.assertLess(abs(total - 5_000_000), 250_000)

    def test_the_longest_wait_is_told_and_forgotten_with_another_rate(self) -> None:
        (writer,) = self.batches(100_000)
        throttle = self.throttle(1_000_000, writer)
        run(self.clock, 1, 0.001)
        self.assertLess(abs(throttle.longest_wait - 0.1), 0.002)
        throttle.rate = 4_000_000
        self.assertEqual(throttle.longest_wait, 0.0)
        run(self.clock, 1, 0.001)
        self.assertLess(abs(throttle.longest_wait - 0.025), 0.002)

    def test_another_rate_counts_at_once(self) -> None:
        (writer,) = self.batches(100_000)
        throttle = self.throttle(1_000, writer)
        run(self.clock, 1, 0.01)
        self.assertEqual(len(writer.done), 1)
        throttle.rate = 1_000_000
        run(self.clock, 0.11, 0.01)
        self.assertEqual(len(writer.done), 2)

    def test_a_trim_costs_no_more_than_a_long_write(self) -> None:
        writer = Writer(self.clock, 1 << 40, busy=False)
        self.throttle(MAX_CHARGE, writer)
        self.assertTrue(writer.held)
        run(self.clock, 1.01, 0.01)
        self.assertFalse(writer.held)

    def test_who_makes_nothing_dirty_pays_nothing(self) -> None:
        (writer,) = self.batches(100_000)
        throttle = self.throttle(1_000, writer)
        other = Writer(self.clock, 100)
        for _ in range(100):
            throttle.charge(other)
            self.assertFalse(other.held)

    def test_lifting_it_lets_everybody_go_and_leaves_no_timer(self) -> None:
        writers = self.batches(100_000, 200_000)
        throttle = self.throttle(1_000, *writers)
        for writer in writers:
            writer.throttle = None
            writer.busy = False
        throttle.lift()
        self.assertFalse(any(writer.held for writer in writers))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_leaves_owes_nothing_and_leaves_no_timer(self) -> None:
        first, second = self.batches(100_000, 100_000)
        throttle = self.throttle(1_000, first, second)
        first.held = False
        throttle.leave(first)
        run(self.clock, 100.5, 0.1)
        self.assertEqual([len(first.done), len(second.done)], [1, 2])
        throttle.leave(second)
        throttle.leave(second)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_who_goes_on_may_make_another_leave(self) -> None:
        first, second = self.batches(100, 100)
        throttle = Throttle(self.clock, 1_000, self.meter)

        class Jealous(Writer):
            def release(self, reason: int) -> None:
                throttle.leave(second)

        jealous = Jealous(self.clock, 100, busy=False)
        for writer in (jealous, first, second):
            self.meter.bytes += 100
            throttle.charge(writer)
        first.busy = second.busy = False
        self.clock.advance(1)
        self.assertFalse(first.held)
        self.assertEqual(self.clock.getDelayedCalls(), [])
