from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import UsageError
from flexmigrate.migration.request import ConvergeChange, ConvergeConfig, ConvergeRule
from flexmigrate.migration.source.convergence import (
    CAUTION,
    COMFORTABLE_SECONDS,
    LONGEST_WAIT,
    MEASURABLE,
    MOST_SLOWED,
    SHRINK,
    SLOWEST,
    UNNOTICED,
    Convergence,
    ConvergenceVerdict,
    Pass,
    slower,
)
from flexmigrate.migration.source.rate import RateLimit

MIB = 1 << 20
USUAL = ConvergeConfig()
RATES = st.integers(1, 10**12)
LENGTHS = st.integers(1, 32 * MIB)


def convergence(config: ConvergeConfig = USUAL, limit: int = 0) -> Convergence:
    return Convergence(config, RateLimit(limit), 0.0)


class Link:
    """A writer and a link, as passes see them: whatever the link takes in a second, the writer
    dirties what it may.

    :param link: bytes a second.
    :param writer: what the writer would write, bytes a second.
    :param held: how many bytes the writer keeps under way, each of which waits for all others.
    :param flush: seconds that a flush takes.
    """

    def __init__(
        self, plan: Convergence, link: float, writer: float, *, held: int = 32768, flush: float = 0
    ) -> None:
        self.plan = plan
        self.link, self.writer, self.held, self.flush = link, writer, held, flush
        self.now = 0.0
        self.dirty = 10**9
        self.passes = 0

    def a_pass(self) -> bool:
        """Return whether clients are to be parked after another one."""
        limit = self.plan.write_limit
        rate = self.writer if limit is None else min(limit, self.writer)
        wait = self.held / limit if limit is not None and limit <= self.writer else 0.0
        seconds, sent = self.dirty / self.link, self.dirty
        self.dirty = int(rate * (seconds + self.flush))
        self.now += seconds + self.flush
        self.passes += 1
        return self.plan.after(Pass(sent, sent, seconds, self.dirty, self.flush), wait, self.now)

    def run(self, most: int = 100) -> None:
        """Until clients are to be parked."""
        while not self.a_pass():
            if self.passes == most:
                raise AssertionError(f"no end after {most} passes, {self.dirty} bytes are left")


class PassTests(SynchronousTestCase):
    def test_has_a_rate_even_if_it_took_no_time(self) -> None:
        self.assertEqual(Pass(10 * MIB, 10 * MIB, 2.0, 0).rate, 5 * MIB)
        self.assertGreater(Pass(1, 1, 0.0, 0).rate, 0)
        self.assertEqual(Pass(0, 0, 0.0, 0).rate, 0)


class RateTests(SynchronousTestCase):
    """What is known of the link."""

    def rate_after(self, *passes: Pass, limit: int = 0) -> float:
        plan = convergence(limit=limit)
        for done in passes:
            plan.after(done, 0.0, 0.0)
        return plan.send_rate

    def test_a_small_pass_says_little_about_the_link(self) -> None:
        bulk, trickle = Pass(100 * MIB, 100 * MIB, 1.0, 0), Pass(4096, 4096, 0.05, 0)
        self.assertEqual(self.rate_after(bulk), 100 * MIB)
        self.assertEqual(self.rate_after(bulk, trickle), 100 * MIB)
        self.assertEqual(self.rate_after(trickle), trickle.rate)

    def test_a_large_one_tells_that_the_link_became_slow(self) -> None:
        bulk = Pass(100 * MIB, 100 * MIB, 1.0, 0)
        self.assertEqual(self.rate_after(bulk, Pass(MEASURABLE, MEASURABLE, 1.0, 0)), MEASURABLE)

    def test_holes_say_nothing_about_the_link(self) -> None:
        bulk = Pass(100 * MIB, 100 * MIB, 1.0, 0)
        self.assertEqual(self.rate_after(bulk, Pass(10**12, 0, 0.1, 0)), 100 * MIB)

    def test_a_limit_counts(self) -> None:
        self.assertEqual(
            self.rate_after(Pass(100 * MIB, 100 * MIB, 1.0, 0), limit=5 * MIB), 5 * MIB
        )

    def test_what_is_dirtied_is_told_as_a_rate(self) -> None:
        plan = convergence()
        for second in range(1, 11):
            plan.dirtied(second * 5000, float(second))
        self.assertAlmostEqual(plan.dirty_rate(10.0), 5000)
        plan.restart(10.0)
        self.assertEqual(plan.dirty_rate(10.0), 0.0)

    def test_the_downtime_is_known_once_something_was_sent(self) -> None:
        plan = convergence()
        self.assertIsNone(plan.downtime(100))
        plan.after(Pass(10 * MIB, 10 * MIB, 1.0, 10 * MIB, flush_seconds=0.25), 0.0, 1.0)
        downtime = plan.downtime(5 * MIB)
        assert downtime is not None
        self.assertAlmostEqual(downtime, 0.75)


class ParkTests(SynchronousTestCase):
    """When clients are parked, if nobody has to be slowed down."""

    def parks(self, *passes: Pass) -> bool:
        """Return what follows a link's 100 MiB a second, and then *passes*."""
        plan = convergence(ConvergeConfig("wait"))
        plan.after(Pass(100 * MIB, 100 * MIB, 1.0, 100 * MIB), 0.0, 0.0)
        return [plan.after(done, 0.0, 0.0) for done in passes][-1]

    def test_nothing_left_is_always_small_enough(self) -> None:
        for downtime in (0.0, 0.1):
            plan = convergence(ConvergeConfig(max_downtime=downtime))
            self.assertTrue(plan.after(Pass(0, 0, 0.0, 0), 0.0, 0.0))

    @given(LENGTHS, st.floats(0.001, 100), st.integers(0, 10**12), st.floats(0, 10), RATES)
    def test_only_when_the_rest_fits(
        self, sent: int, seconds: float, left: int, downtime: float, rate: int
    ) -> None:
        plan = convergence(ConvergeConfig("wait", max_downtime=downtime, max_park=20.0))
        plan.after(Pass(rate, rate, 1.0, 1), 0.0, 0.0)
        parks = plan.after(Pass(sent, sent, seconds, left), 0.0, 0.0)
        expected = plan.downtime(left)
        if parks and left:
            assert expected is not None
            self.assertLessEqual(expected, downtime * 1.000001)
        elif expected is not None and expected < downtime:
            # It would fit, but another pass makes clients wait for less.
            self.assertLessEqual(left, SHRINK * sent)

    def test_what_is_next_to_nothing_is_not_worth_another_pass(self) -> None:
        self.assertTrue(self.parks(Pass(100 * MIB, 100 * MIB, 1.0, MIB // 2)))
        self.assertFalse(self.parks(Pass(100 * MIB, 100 * MIB, 1.0, MIB)))

    def test_what_fits_and_does_not_shrink_any_more_is_parked_for(self) -> None:
        self.assertTrue(self.parks(Pass(12 * MIB, 12 * MIB, 0.12, 10 * MIB)))
        self.assertFalse(self.parks(Pass(12 * MIB, 12 * MIB, 0.12, 11 * MIB)))

    def test_the_flush_at_the_destination_is_a_part_of_it(self) -> None:
        self.assertFalse(self.parks(Pass(12 * MIB, 12 * MIB, 0.12, 10 * MIB, flush_seconds=0.01)))
        self.assertTrue(self.parks(Pass(12 * MIB, 12 * MIB, 0.12, 9 * MIB, flush_seconds=0.01)))

    def test_a_flush_that_takes_longer_than_is_allowed_is_not_made_up_for(self) -> None:
        rest = int(UNNOTICED * 100 * MIB)
        self.assertTrue(self.parks(Pass(rest, rest, 0.25, rest, flush_seconds=1.0)))
        self.assertFalse(self.parks(Pass(rest, rest, 0.25, rest + MIB, flush_seconds=1.0)))

    def test_after_the_first_pass_nothing_is_known_of_scattered_blocks(self) -> None:
        plan = convergence()
        self.assertFalse(plan.after(Pass(100 * MIB, 100 * MIB, 1.0, 4096), 0.0, 0.0))
        self.assertIsNone(plan.write_limit)

    def slowed(self, left: int, wait: float = 0.001) -> list[float | None]:
        """Return how writers are slowed down, time after time, before *left* is parked for, at 100
        MiB a second, by writers who write as much all the same.
        """
        plan = convergence()
        plan.after(Pass(100 * MIB, 100 * MIB, 1.0, left), 0.0, 0.0)
        limits = []
        while not plan.after(Pass(left, left, left / (100 * MIB), left), wait, 0.0):
            limits.append(plan.write_limit)
        return limits

    def test_what_fits_is_made_less_first_by_slowing_writers_down(self) -> None:
        little = int(COMFORTABLE_SECONDS * 100 * MIB)
        self.assertEqual(self.slowed(little), [50 * MIB])
        self.assertEqual(
            self.slowed(9 * MIB), [50 * MIB / 2**number for number in range(MOST_SLOWED)]
        )
        # Not so far that a single wait would be noticed.
        self.assertEqual(self.slowed(9 * MIB, LONGEST_WAIT), [50 * MIB])

    def test_a_pass_that_had_nothing_to_send_slows_nobody_down(self) -> None:
        plan = convergence()
        self.assertFalse(plan.after(Pass(0, 0, 0.5, 4096), 0.0, 0.0))
        self.assertIsNone(plan.write_limit)

    def test_a_pass_of_holes_is_not_futile(self) -> None:
        plan = convergence()
        plan.after(Pass(MIB, MIB, 1.0, MIB), 0.0, 0.0)
        self.assertFalse(plan.after(Pass(100 * MIB, 0, 0.1, 40 * MIB), 0.0, 0.0))
        self.assertEqual(
            plan.verdict,
            ConvergenceVerdict.THROTTLING if plan.write_limit else ConvergenceVerdict.CONVERGING,
        )


class ThrottleTests(SynchronousTestCase):
    @given(
        link=st.integers(100 * 1024, 10**11),
        writer=st.integers(1, 10**12),
        held=st.integers(512, 64 * MIB),
        flush=st.floats(0, 3),
        downtime=st.floats(0, 2),
    )
    def test_it_always_ends(
        self, link: int, writer: int, held: int, flush: float, downtime: float
    ) -> None:
        plan = convergence(ConvergeConfig(max_downtime=downtime))
        run = Link(plan, link, writer, held=held, flush=flush)
        run.run()
        expected = plan.downtime(run.dirty)
        assert expected is not None
        self.assertLessEqual(expected, max(plan.allowed, (1 + UNNOTICED) * flush) * 1.000001)
        self.assertLessEqual(plan.allowed, CAUTION * USUAL.max_park)

    def test_writers_that_are_slow_enough_are_left_alone(self) -> None:
        plan = convergence()
        Link(plan, 100 * MIB, 65 * MIB).run()
        self.assertIsNone(plan.write_limit)
        self.assertEqual(plan.verdict, ConvergenceVerdict.CONVERGING)

    def test_half_of_what_can_be_sent_is_enough_for_a_good_link(self) -> None:
        plan = convergence()
        run = Link(plan, 50 * MIB, 1000 * MIB)
        self.assertFalse(run.a_pass())
        self.assertEqual(plan.write_limit, 25 * MIB)
        self.assertEqual(plan.verdict, ConvergenceVerdict.THROTTLING)
        run.run()
        self.assertEqual(plan.write_limit, 25 * MIB)
        self.assertEqual(plan.allowed, USUAL.max_downtime)

    def test_before_a_writer_waits_for_long_the_downtime_is_stretched(self) -> None:
        plan = convergence()
        # 32 KiB under way wait for 50 ms at 640 KiB/s.
        run = Link(plan, 1200 * 1024, 10**9, held=32768, flush=0.3)
        run.run()
        self.assertGreater(plan.allowed, USUAL.max_downtime)
        assert plan.write_limit is not None
        self.assertLessEqual(32768 / plan.write_limit, 2 * LONGEST_WAIT)

    def test_only_when_that_is_at_its_end_they_are_slowed_down_further(self) -> None:
        plan = convergence(ConvergeConfig(max_downtime=0.1, max_park=0.4))
        run = Link(plan, 1200 * 1024, 10**9, held=4 * MIB, flush=0.15)
        run.run()
        self.assertEqual(plan.allowed, CAUTION * 0.4)
        assert plan.write_limit is not None
        self.assertLess(plan.write_limit, 640 * 1024)


class RuleTests(SynchronousTestCase):
    def plan(self, rule: ConvergeRule, **more: float) -> tuple[Convergence, Link]:
        plan = convergence(ConvergeConfig(rule, **more))
        return plan, Link(plan, 50 * MIB, 200 * MIB)

    def test_wait_waits_and_says_so(self) -> None:
        plan, run = self.plan("wait")
        with self.assertRaises(AssertionError):
            run.run()
        self.assertIsNone(plan.write_limit)
        self.assertEqual(plan.verdict, ConvergenceVerdict.NOT_CONVERGING)
        run.writer = 10 * MIB
        run.run(200)
        self.assertIsNone(plan.write_limit)

    def test_force_waits_for_its_timeout_and_then_ends(self) -> None:
        plan, run = self.plan("force", timeout=200.0)
        run.a_pass()
        began = run.now
        while run.now < began + 200:
            self.assertIsNone(plan.write_limit)
            self.assertFalse(plan.enough(0, run.now - 1e-6))
            self.assertFalse(run.a_pass())
            run.dirty = min(run.dirty, 2 * 10**9)  # there is no more to be dirtied
        self.assertEqual(plan.verdict, ConvergenceVerdict.THROTTLING)
        run.run()
        expected = plan.downtime(run.dirty)
        assert expected is not None
        self.assertLessEqual(expected, CAUTION * USUAL.max_park)

    def test_force_ends_a_pass_as_soon_as_it_may(self) -> None:
        plan, run = self.plan("force", timeout=10.0)
        run.a_pass()
        most = int(CAUTION * USUAL.max_park * 50 * MIB)
        self.assertFalse(plan.enough(most, run.now + 9.9))
        self.assertTrue(plan.enough(most, run.now + 10))
        self.assertFalse(plan.enough(most + MIB, run.now + 10))

    def test_nothing_is_forced_before_all_was_sent_once(self) -> None:
        plan, _ = self.plan("force", timeout=0.0)
        self.assertFalse(plan.enough(0, 1000.0))

    def test_a_change_to_wait_frees_writers_and_one_to_force_acts(self) -> None:
        plan, run = self.plan("throttle")
        run.a_pass()
        self.assertIsNotNone(plan.write_limit)
        plan.change(ConvergeChange("wait"), run.now)
        self.assertIsNone(plan.write_limit)
        for _ in range(5):
            self.assertFalse(run.a_pass())
            run.dirty = 10**9
        plan.change(ConvergeChange("force", timeout=0.0), run.now)
        self.assertTrue(plan.enough(MIB, run.now))

    def test_a_timeout_counts_from_when_it_was_said(self) -> None:
        plan, run = self.plan("wait")
        run.a_pass()
        plan.change(ConvergeChange("force", timeout=5.0), 1000.0)
        self.assertFalse(plan.enough(0, 1004.9))
        self.assertTrue(plan.enough(0, 1005.0))

    def test_a_longer_downtime_counts_at_once(self) -> None:
        plan, run = self.plan("wait")
        run.a_pass()
        plan.change(ConvergeChange(max_downtime=9.0), run.now)
        self.assertEqual(plan.allowed, 9.0)
        run.dirty = 8 * 50 * MIB // 4
        self.assertTrue(run.a_pass())

    def test_a_change_that_makes_no_sense_changes_nothing(self) -> None:
        plan, _ = self.plan("wait")
        before = dataclasses.replace(plan.config)
        with self.assertRaises(UsageError):
            plan.change(ConvergeChange(max_downtime=11.0), 1.0)
        self.assertEqual(plan.config, before)


class SlowerTests(SynchronousTestCase):
    def test_begins_at_half_of_what_can_be_sent(self) -> None:
        self.assertEqual(slower(None, 10 * MIB), 5 * MIB)

    def test_halves_each_time(self) -> None:
        self.assertEqual(slower(5 * MIB, 10 * MIB), 2.5 * MIB)

    def test_follows_a_link_that_became_slow(self) -> None:
        self.assertEqual(slower(5 * MIB, MIB), MIB / 2)

    @given(st.one_of(st.none(), RATES), st.one_of(st.just(0), RATES))
    def test_never_stops_writers(self, limit: int | None, rate: int) -> None:
        self.assertGreaterEqual(slower(limit, rate), SLOWEST)
