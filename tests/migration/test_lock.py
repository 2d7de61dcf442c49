from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.migration.lock import NotTheOwner, OwnedLock


class OwnedLockTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.lock = OwnedLock()

    def test_is_had_at_once_where_nobody_has_it(self) -> None:
        self.assertIsNone(self.successResultOf(self.lock.acquire("a")))
        self.assertEqual(self.lock.owner, "a")

    def test_only_its_owner_can_release_it(self) -> None:
        with self.assertRaises(NotTheOwner):
            self.lock.release("a")
        self.lock.acquire("a")
        waiting = self.lock.acquire("b")
        for stranger in ("b", "c", None):
            with self.assertRaises(NotTheOwner):
                self.lock.release(stranger)
        self.assertEqual(self.lock.owner, "a")
        self.assertNoResult(waiting)

    def test_twice_released_is_a_mistake_the_second_time(self) -> None:
        self.lock.acquire("a")
        self.lock.release("a")
        with self.assertRaises(NotTheOwner):
            self.lock.release("a")

    def test_goes_by_the_order_of_asking(self) -> None:
        order: list[str] = []
        for name in "abcd":
            self.lock.acquire(name).addCallback(lambda _, name=name: order.append(name))
        for name in "abcd":
            self.assertEqual(order[-1], name)
            self.assertEqual(self.lock.owner, name)
            self.lock.release(name)
        self.assertIsNone(self.lock.owner)

    def test_equal_owners_are_not_the_same_owner(self) -> None:
        one, other = [1], [1]
        self.lock.acquire(one)
        waiting = self.lock.acquire(other)
        with self.assertRaises(NotTheOwner):
            self.lock.release(other)
        self.lock.release(one)
        self.successResultOf(waiting)

    def test_nobody_waits_for_himself(self) -> None:
        self.lock.acquire("a")
        with self.assertRaises(NotTheOwner):
            self.lock.acquire("a")

    def test_who_no_longer_waits_is_passed_over(self) -> None:
        self.lock.acquire("a")
        impatient, patient = self.lock.acquire("b"), self.lock.acquire("c")
        impatient.cancel()
        self.failureResultOf(impatient, CancelledError)
        self.lock.release("a")
        self.successResultOf(patient)
        self.assertEqual(self.lock.owner, "c")

    def test_cancelling_what_one_has_changes_nothing(self) -> None:
        had = self.lock.acquire("a")
        waited = self.lock.acquire("b")
        self.lock.release("a")
        had.cancel()
        waited.cancel()
        self.assertEqual(self.lock.owner, "b")

    def test_is_held_by_the_next_before_that_is_told(self) -> None:
        self.lock.acquire("a")
        self.lock.acquire("b").addCallback(lambda _: self.lock.release("b"))
        last = self.lock.acquire("c")
        self.lock.release("a")
        self.successResultOf(last)
        self.assertEqual(self.lock.owner, "c")
