import itertools
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.net import polling
from flexmigrate.net.polling import (
    FIRST_BACKOFF,
    FIRST_PAUSE,
    GOOD_DELAYS,
    LONG,
    LONGEST_BACKOFF,
    LONGEST_PAUSE,
    LONGEST_TURN,
    RUN,
    Poller,
)


def busy(poller: Poller, connection: object) -> None:
    """Wake *connection* up so often that the next time polling begins."""
    for _ in range(RUN + 1):
        assert not poller.woken(connection)


class WhenToLook(SynchronousTestCase):
    def test_only_after_a_run_of_one_connection(self) -> None:
        poller = Poller()
        busy(poller, "a")
        self.assertTrue(poller.woken("a"))
        self.assertTrue(poller.woken("a"))

    def test_never_while_two_take_turns(self) -> None:
        poller = Poller()
        self.assertFalse(any(poller.woken(each) for each in "ab" * 1000))

    def test_another_connection_ends_the_run(self) -> None:
        poller = Poller()
        busy(poller, "a")
        self.assertTrue(poller.woken("a"))
        self.assertFalse(poller.woken("b"))
        busy(poller, "a")
        self.assertTrue(poller.woken("a"))

    def test_never_when_turned_off(self) -> None:
        poller = Poller(0)
        self.assertFalse(any(poller.woken("a") for _ in range(1000)))


class Looking(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.patch(polling, "monotonic", lambda: self.now)
        self.poller = Poller(50e-6)
        busy(self.poller, "a")
        self.assertTrue(self.poller.woken("a"))

    def look(self, receive: Callable[[], int]) -> int:
        return self.poller.look(lambda behind: receive())

    def receive(self, after: float, outcome: int) -> int:
        """Return nothing until *after* seconds; each look costs a microsecond."""
        self.now += 1e-6
        return outcome if self.now >= after else -1

    def test_what_comes_in_time_is_found(self) -> None:
        self.assertEqual(self.look(lambda: self.receive(30e-6, 28)), 28)
        self.assertEqual((self.poller.hits, self.poller.misses), (1, 0))

    def test_the_end_of_the_connection_is_found_too(self) -> None:
        for outcome in (0, -2):
            self.assertEqual(self.look(lambda outcome=outcome: self.receive(0, outcome)), outcome)

    def test_what_comes_too_late_is_left_to_the_reactor(self) -> None:
        self.assertEqual(self.look(lambda: self.receive(1.0, 28)), -1)
        self.assertEqual((self.poller.hits, self.poller.misses), (0, 1))
        self.assertTrue(49e-6 < self.now < 53e-6, self.now)

    def test_after_looking_in_vain_it_pauses_longer_each_time_but_not_for_ever(self) -> None:
        pauses = []
        for _ in range(12):
            self.assertEqual(self.look(lambda: -1 if self.tick() else 0), -1)
            pauses.append(next(n for n in itertools.count() if self.poller.woken("a")))
        self.assertEqual(
            pauses[:4], [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
        )
        self.assertEqual(pauses[-1], LONGEST_PAUSE)

    def test_a_hit_makes_the_next_pause_short_again(self) -> None:
        for _ in range(5):
            self.look(lambda: -1 if self.tick() else 0)
        self.look(lambda: 28)
        self.look(lambda: -1 if self.tick() else 0)
        self.assertEqual(sum(not self.poller.woken("a") for _ in range(100)), FIRST_PAUSE)

    def test_a_turn_ends_however_well_it_goes(self) -> None:
        self.assertEqual(self.poller.turn_ends, self.now + LONGEST_TURN)
        self.now += LONGEST_TURN
        self.assertEqual(self.poller.turn_ends, self.now)
        self.poller.woken("a")
        self.assertEqual(self.poller.turn_ends, self.now + LONGEST_TURN)

    def tick(self) -> bool:
        self.now += 1e-6
        return True


class Napping(SynchronousTestCase):
    """What is there at once was sent by a client that was ahead."""

    def setUp(self) -> None:
        self.naps = 0
        self.now = 0.0
        self.patch(polling, "sleep", self.sleep)
        self.patch(polling, "monotonic", self.tick)
        self.poller = Poller()
        busy(self.poller, "a")

    def sleep(self, seconds: float) -> None:
        self.naps += 1

    def tick(self) -> float:
        self.now += 1e-6
        return self.now

    def ahead(self, *, size: int = 28, more: int = 280) -> int:
        """Look when something is there at once."""
        return self.poller.look(lambda behind: more if behind else size)

    def behind(self) -> int:
        """Look when something comes only after a while."""
        sizes = iter((-1, -1, 28))
        return self.poller.look(lambda behind: next(sizes))

    def rest(self) -> int:
        """How many looks there are until the next nap."""
        before = self.naps
        return next(n for n in itertools.count() if self.ahead() and self.naps > before)

    def test_what_comes_meanwhile_is_served_with_it(self) -> None:
        self.assertEqual(self.rest(), FIRST_BACKOFF)
        self.assertEqual(self.ahead(), 28 + 280)
        self.assertEqual(self.naps, 2)

    def test_nothing_need_come(self) -> None:
        self.rest()
        for nothing in (-1, 0, -2):
            self.assertEqual(self.ahead(more=nothing), 28)

    def test_there_is_one_each_time_while_the_client_stays_ahead(self) -> None:
        self.rest()
        for _ in range(10_000):
            self.ahead()
        self.assertEqual(self.naps, 10_001)

    def test_a_client_that_had_to_wait_is_left_alone_longer_each_time_but_not_for_ever(
        self,
    ) -> None:
        rests = []
        for _ in range(12):
            rests.append(self.rest())
            self.assertEqual(self.behind(), 28)
        self.assertEqual(
            rests[:4], [FIRST_BACKOFF, FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF]
        )
        self.assertEqual(rests[-1], LONGEST_BACKOFF)
        self.assertEqual(self.naps, 12)

    def test_one_that_waits_without_naps_is_nothing_to_them(self) -> None:
        for _ in range(100):
            self.behind()
        self.assertEqual(self.rest(), FIRST_BACKOFF)

    def test_many_in_a_row_make_the_next_rest_short_again(self) -> None:
        for _ in range(5):
            self.rest()
            self.behind()
        self.assertEqual(self.rest(), 16 * FIRST_BACKOFF)
        for _ in range(GOOD_DELAYS):
            self.ahead()
        self.behind()
        self.assertEqual(self.rest(), FIRST_BACKOFF)

    def test_there_is_none_where_enough_has_come(self) -> None:
        self.rest()
        before = self.naps
        self.assertEqual(self.ahead(size=LONG), LONG)
        self.assertEqual(self.naps, before)

    def test_there_is_none_at_the_end_of_a_connection(self) -> None:
        self.rest()
        before = self.naps
        for outcome in (0, -2):
            self.assertEqual(self.ahead(size=outcome), outcome)
        self.assertEqual(self.naps, before)

    def test_another_connection_begins_anew(self) -> None:
        self.rest()
        self.ahead()
        self.poller.woken("b")
        self.poller.woken("a")
        self.assertEqual(self.rest(), FIRST_BACKOFF)
