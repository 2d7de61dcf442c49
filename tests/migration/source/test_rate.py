from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.migration.source.rate import BURST_SECONDS, GRAIN, RATE_WINDOW, Rate, RateLimit

MIB = 1 << 20
RATES = st.integers(1, 10**12)
LENGTHS = st.integers(1, 32 * MIB)


def send(limit: RateLimit, now: float, length: int) -> float:
    """Wait for the limit as a sender does, and return when the request was sent."""
    while delay := limit.delay(now):
        now += delay
    limit.charge(now, length)
    return now


class RateLimitTests(SynchronousTestCase):
    def test_without_a_limit_nothing_waits(self) -> None:
        limit = RateLimit()
        for _ in range(100):
            self.assertEqual(send(limit, 5.0, 32 * MIB), 5.0)

    @given(RATES, st.lists(st.tuples(LENGTHS, st.floats(0, 10)), min_size=1, max_size=30))
    def test_is_kept_to_over_any_stretch(
        self, rate: int, requests: list[tuple[int, float]]
    ) -> None:
        limit, now = RateLimit(rate), 1000.0
        sent: list[tuple[float, int]] = []
        for length, pause in requests:
            now = send(limit, now + pause, length)
            sent.append((now, length))
        for first in range(len(sent)):
            for last in range(first, len(sent)):
                stretch = sent[last][0] - sent[first][0]
                # All but the last, which is still to be paid for, and what had been saved up.
                amount = sum(length for _, length in sent[first:last])
                self.assertLessEqual(amount, rate * (stretch + BURST_SECONDS) * 1.000001 + 2)

    @given(RATES, st.lists(LENGTHS, min_size=2, max_size=30))
    def test_is_used_in_full_by_who_always_sends(self, rate: int, lengths: list[int]) -> None:
        limit, now = RateLimit(rate), 0.0
        for length in lengths:
            now = send(limit, now, length)
        fair = sum(lengths[:-1]) / rate
        self.assertLessEqual(now, fair * 1.000001 + 1e-9)
        self.assertGreaterEqual(now, fair * 0.999999 - BURST_SECONDS - 2 / rate)

    @given(RATES)
    def test_goes_smoothly(self, rate: int) -> None:
        piece = RateLimit(rate).piece(MIB)
        self.assertLessEqual(piece, MIB)
        self.assertGreaterEqual(piece, GRAIN)
        self.assertEqual(piece % GRAIN, 0)
        if piece > GRAIN:
            self.assertLessEqual(piece, rate * BURST_SECONDS)

    def test_without_a_limit_a_piece_is_as_large_as_may_be(self) -> None:
        self.assertEqual(RateLimit().piece(MIB), MIB)

    def test_a_higher_limit_counts_at_once(self) -> None:
        limit = RateLimit(1000)
        limit.charge(0.0, 100_000)
        self.assertAlmostEqual(limit.delay(0.0), 100.0)
        limit.bytes_per_second = 100_000
        self.assertAlmostEqual(limit.delay(0.0), 1.0)
        limit.bytes_per_second = 0
        self.assertEqual(limit.delay(0.0), 0.0)

    def test_a_lower_limit_counts_at_once(self) -> None:
        limit = RateLimit(100_000)
        limit.charge(0.0, 100_000)
        limit.bytes_per_second = 1000
        self.assertAlmostEqual(limit.delay(0.0), 100.0)

    def test_a_limit_that_comes_late_is_not_paid_for_what_was_before(self) -> None:
        limit = RateLimit()
        limit.charge(0.0, 10**12)
        limit.bytes_per_second = 1000
        self.assertEqual(limit.delay(1.0), 0.0)

    def test_rounding_makes_nobody_wait_for_ever(self) -> None:
        limit = RateLimit(3)
        limit.charge(1e9, 10)
        self.assertLess(send(limit, 1e9, 1) - 1e9, 4.0)


class RateTests(SynchronousTestCase):
    def test_nothing_measured_is_no_rate(self) -> None:
        self.assertEqual(Rate(5.0).value(5.0), 0.0)

    def test_is_what_went_by_in_the_last_second_or_so(self) -> None:
        rate = Rate(0.0)
        for tick in range(1, 101):
            rate.add(tick / 10, 1000)
        self.assertLessEqual(abs(rate.value(10.0) - 10_000), 1000)

    def test_falls_when_nothing_goes_any_more(self) -> None:
        rate = Rate(0.0)
        rate.add(1.0, 1000)
        self.assertAlmostEqual(rate.value(1.0 + RATE_WINDOW), 1000)
        self.assertEqual(rate.value(2.0 + 2 * RATE_WINDOW), 0.0)

    def test_follows_a_change(self) -> None:
        rate = Rate(0.0)
        rate.add(1.0, 10**9)
        rate.add(2.5, 1500)
        self.assertAlmostEqual(rate.value(2.5), 1000)
