from __future__ import annotations

import itertools

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.telemetry.fields import documented
from flexmigrate.telemetry.history import (
    FIRST_INTERVAL,
    MOST_CHANGES,
    MOST_SAMPLES,
    MOST_TEXT,
    History,
    Sample,
    Summary,
    shortened,
)


def sample(seconds: float, phase: str = "copying") -> Sample:
    return Sample(seconds, phase, attempt=1, pass_number=1, bytes_sent=int(seconds * 1000))


def watched(duration: float) -> History:
    """Take samples for *duration* seconds, when the history wants them."""
    history, now = History(), 0.0
    while now < duration:
        history.add(sample(now))
        now += history.interval
    return history


class HistoryTests(SynchronousTestCase):
    def test_is_as_long_for_a_day_as_for_an_hour(self) -> None:
        for duration in (10.0, 3600.0, 86400.0, 30 * 86400.0):
            history = watched(duration)
            self.assertLess(len(history.samples), MOST_SAMPLES)
            self.assertGreater(len(history.samples), min(duration * 9, MOST_SAMPLES // 2 - 1))

    def test_samples_are_equally_far_apart_from_the_beginning_to_the_end(self) -> None:
        history = watched(3600.0)
        times = [each.seconds for each in history.samples]
        apart = [later - before for before, later in itertools.pairwise(times)]
        self.assertEqual(times[0], 0.0)
        self.assertAlmostEqual(min(apart), history.interval, 6)
        self.assertAlmostEqual(max(apart), history.interval, 6)
        self.assertGreater(history.interval, FIRST_INTERVAL)
        self.assertGreater(times[-1], 3600.0 - 2 * history.interval)

    def test_of_many_changes_the_last_are_kept(self) -> None:
        history = History()
        for number in range(3 * MOST_CHANGES):
            history.change(sample(float(number), "waiting"))
        self.assertEqual(len(history.changes), MOST_CHANGES)
        self.assertEqual(history.changes[-1].seconds, 3 * MOST_CHANGES - 1)

    def test_samples_and_changes_are_told_in_the_order_of_time(self) -> None:
        history = History()
        history.add(sample(0.0))
        history.change(sample(0.05, "parked"))
        history.add(sample(0.1))
        self.assertEqual([each.seconds for each in history.all()], [0.0, 0.05, 0.1])

    def test_every_field_says_what_it_means(self) -> None:
        for kind in (Sample, Summary):
            for field in documented(kind):
                self.assertTrue(field.doc, field.name)

    def test_a_long_error_is_cut(self) -> None:
        self.assertEqual(shortened("x" * MOST_TEXT), "x" * MOST_TEXT)
        self.assertEqual(shortened("x" * 5000), "x" * MOST_TEXT + "…")
        self.assertIsNone(shortened(None))
