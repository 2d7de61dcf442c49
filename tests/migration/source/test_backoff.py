from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.migration.source.backoff import MOST, Backoff


class BackoffTests(SynchronousTestCase):
    def test_the_first_retries_come_soon_and_the_later_ones_a_minute_apart(self) -> None:
        backoff = Backoff()
        self.assertEqual([backoff.failed() for _ in range(9)], [1, 1, 2, 4, 8, 16, 32, 60, 60])

    def test_it_never_grows_too_large(self) -> None:
        backoff = Backoff()
        self.assertEqual([backoff.failed() for _ in range(5000)][-1], MOST)

    def test_it_begins_anew(self) -> None:
        backoff = Backoff()
        for _ in range(5):
            backoff.failed()
        backoff.reset()
        self.assertEqual(backoff.failed(), 1)
