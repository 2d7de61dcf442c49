"""The handover, in many simulated migrations; docs/simulation.rst tells what that proves."""

from __future__ import annotations

import itertools
import os
import tempfile
from dataclasses import dataclass
from unittest import mock

import pytest
from twisted.trial.unittest import SynchronousTestCase

from simulation.mutations import LIED, MUTATIONS, Change, PlaceGone
from simulation.running import CLAIMS, beside, told_of
from simulation.schedules import (
    LIES,
    STEPS,
    Ending,
    Fault,
    Schedule,
    drawn,
    lies,
    pairs,
    singles,
    strange,
)

EVERYTHING = "FLEXMIGRATE_SIMULATE_EVERYTHING"
"""Set it, and no schedule is left out: more than an hour on two cores."""

SCHEDULES = 100_000
"""Different sequences of events that are to be judged to their ends, in all: see ``Played``."""


@dataclass(frozen=True)
class Played:
    """What the processes that played said of it.

    :ivar begun: schedules that were played from their beginning.
    :ivar ends: moments at which everything could have died, and what was left then was judged.
    :ivar ways: how many ways there were to go on from what was left.
    :ivar gone_on: those of them that differ, which were played.
    """

    begun: int
    ends: int
    ways: int
    gone_on: int

    @classmethod
    def of(cls, lines: list[str]) -> Played:
        """Read the last line of each process, and add them up."""
        numbers = [[int(word) for word in line.split() if word.isdigit()] for line in lines]
        return cls(*(sum(column) for column in list(zip(*numbers, strict=True))[:4]))


class PlayedTests(SynchronousTestCase):
    """What is left of one schedule, and was left of another, is played once: in all of them."""

    folder: tempfile.TemporaryDirectory[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.folder.cleanup()

    def play(self, what: str, last: int, step: int = 1, every: int = 100_000) -> Played:
        """Play each *step*-th up to *last*, or all up to *every* if nothing is to be left out."""
        if os.environ.get(EVERYTHING):
            last, step = every, 1
        with mock.patch.dict(os.environ, {CLAIMS: self.folder.name}):
            status, printed = beside(what, last, 0, step)
        summaries = [line for line in printed if line.startswith(f"{what}: ")]
        wrong = "\n".join(line for line in printed if not line.startswith(f"{what}: "))
        if status or wrong:
            self.fail(wrong or f"status {status}")  # all of it: a schedule can be played again
        return Played.of(summaries)

    def test_every_fault_at_every_step_of_the_handover(self) -> None:
        # Each third: of every fault, every step and every kind of handover some.
        played = self.play("singles" if os.environ.get(EVERYTHING) else "main", 100_000, 3)
        self.assertGreaterEqual(played.begun, 1_000)
        self.assertGreater(played.ways, SCHEDULES)

    def test_two_faults_one_after_the_other(self) -> None:
        # 293 has no factor in common with the number of faults: each two of them meet.
        self.assertGreaterEqual(self.play("pairs", 200_000, 293, every=200_000).begun, 470)

    def test_a_sender_that_does_not_wait_for_answers(self) -> None:
        self.assertGreaterEqual(self.play("strange", 60, every=200).begun, 60)

    def test_what_everything_else_takes_for_granted(self) -> None:
        # Of each of the six kinds some: until one is at its end, the next comes from another.
        self.assertGreaterEqual(self.play("lies", 2_500, 12).begun, 200)

    def test_any_faults_in_any_order_of_all_that_happens(self) -> None:
        played = self.play("random", 240, every=60_000)
        self.assertGreaterEqual(played.begun, 240)
        self.assertGreater(played.ends, 10 * played.begun)


class MutationTests(SynchronousTestCase):
    def test_each_is_found(self) -> None:
        status, printed = beside("mutations", 0, 1)
        found = [line for line in printed if line.startswith("found: ")]
        missed = [line for line in printed if line.startswith("not found: ")]
        self.assertEqual((status, missed, len(found)), (0, [], len(MUTATIONS)))

    def test_those_of_a_lie_are_found_by_it_alone(self) -> None:
        # That each is found where its lie is told, the test above has seen.
        most = 3_000 if os.environ.get(EVERYTHING) else 40
        status, printed = beside("alone", most, 0, 1)
        alone = [line for line in printed if line.startswith("by its lie alone: ")]
        self.assertEqual((status, len(alone)), (0, len(LIED)), "\n".join(printed))
        self.assertEqual({each.lie for each in LIED}, set(LIES))

    def test_the_code_is_as_before_afterwards(self) -> None:
        for mutation in MUTATIONS:
            before = [change.target.__code__ for change in mutation.changes]
            with mutation.applied():
                for change, code in zip(mutation.changes, before, strict=True):
                    self.assertIsNot(change.target.__code__, code)
            after = [change.target.__code__ for change in mutation.changes]
            self.assertEqual(after, before)

    def test_a_place_that_is_gone_is_told_of(self) -> None:
        change = Change(Change.code, "what nobody ever wrote" + " there", "pass")
        self.assertRaises(PlaceGone, change.code)


class ScheduleTests(SynchronousTestCase):
    def test_what_is_printed_can_be_read_again(self) -> None:
        ending = Ending(("process", "machine"), 12, (0.0, None))
        some = [*map(drawn, range(200)), next(singles()), next(pairs()), next(strange())]
        some += itertools.islice(lies(), 100)
        for schedule in [*some, *(each.after(ending).after(ending) for each in some)]:
            self.assertEqual(Schedule.parse(str(schedule)), schedule)

    def test_one_goes_on_after_everything_died(self) -> None:
        both = "all:process+process@14~0+3"
        again = "all:process+process@4~0+0"
        told = told_of(f"1 ordered unlink cut:nothing@parked+10~never {both} {again}")
        self.assertEqual(told[-1], "all is as it must be")
        self.assertEqual(sum(line.split()[-1].startswith("all:") for line in told), 2)
        self.assertTrue(any("ends with status 0" in line for line in told))

    def test_an_ending_that_never_comes_is_told_of(self) -> None:
        told = told_of("1 ordered all:process+process@100000~0+0")
        self.assertIn("it is over before all:process+process@100000~0+0", told[-1])

    def test_a_destination_that_left_too_early_is_asked_where_it_received(
        self,
    ) -> None:
        told = told_of("2691 shuffled cut:to-source@parked+30~never part:destination@parked+22~70")
        self.assertEqual(told[-1], "all is as it must be")
        self.assertTrue(any("ends with status 0" in line for line in told if "source" in line))

    def test_each_plays_the_same_way_each_time(self) -> None:
        for number in range(5):
            schedule = str(drawn(number))
            once, again = (told_of(schedule) for _ in range(2))
            self.assertEqual(once, again)
            self.assertIn("all is as it must be", once[-1])


# Under pytest alone: once is enough for what takes so long.
@pytest.mark.parametrize("options", ["", "rebind", "unlink", "plain", "plain unlink", "busy"])
def test_the_steps_reach_to_the_end_of_the_handover(options: str) -> None:
    fault = Fault("cut", "nothing", "parked", STEPS)
    told = told_of(str(Schedule(1, False, frozenset(options.split()), (fault,))))
    before = told[: next((at for at, line in enumerate(told) if "cut:" in line), len(told))]
    assert any("source" in line and "ends with status 0" in line for line in before)
