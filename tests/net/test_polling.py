import itertools

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.net import polling
from flexmigrate.net.polling import FIRST_PAUSE, LONGEST_PAUSE, LONGEST_TURN, RUN, Poller


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

    def receive(self, after: float, outcome: int) -> int:
        """Return nothing until *after* seconds; each look costs a microsecond."""
        self.now += 1e-6
        return outcome if self.now >= after else -1

    def test_what_comes_in_time_is_found(self) -> None:
        self.assertEqual(self.poller.look(lambda: self.receive(30e-6, 28)), 28)
        self.assertEqual((self.poller.hits, self.poller.misses), (1, 0))

    def test_the_end_of_the_connection_is_found_too(self) -> None:
        for outcome in (0, -2):
            self.assertEqual(
                self.poller.look(lambda outcome=outcome: self.receive(0, outcome)), outcome
            )

    def test_what_comes_too_late_is_left_to_the_reactor(self) -> None:
        self.assertEqual(self.poller.look(lambda: self.receive(1.0, 28)), -1)
        self.assertEqual((self.poller.hits, self.poller.misses), (0, 1))
        self.assertTrue(49e-6 < self.now < 53e-6, self.now)

    def test_after_looking_in_vain_it_pauses_longer_each_time_but_not_for_ever(self) -> None:
        pauses = []
        for _ in range(12):
            self.assertEqual(self.poller.look(lambda: -1 if self.tick() else 0), -1)
            pauses.append(next(n for n in itertools.count() if self.poller.woken("a")))
        self.assertEqual(
            pauses[:4], [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
        )
        self.assertEqual(pauses[-1], LONGEST_PAUSE)

    def test_a_hit_makes_the_next_pause_short_again(self) -> None:
        for _ in range(5):
            self.poller.look(lambda: -1 if self.tick() else 0)
        self.poller.look(lambda: 28)
        self.poller.look(lambda: -1 if self.tick() else 0)
        self.assertEqual(sum(not self.poller.woken("a") for _ in range(100)), FIRST_PAUSE)

    def test_a_turn_ends_however_well_it_goes(self) -> None:
        self.assertFalse(self.poller.turn_is_over())
        self.now += LONGEST_TURN
        self.assertTrue(self.poller.turn_is_over())
        self.poller.woken("a")
        self.assertFalse(self.poller.turn_is_over())

    def tick(self) -> bool:
        self.now += 1e-6
        return True
