"""The handover, in many simulated migrations; docs/simulation.rst tells what that proves."""

from __future__ import annotations

import os

import pytest
from twisted.trial.unittest import SynchronousTestCase

from simulation.mutations import MUTATIONS, Change, PlaceGone
from simulation.running import beside, told_of
from simulation.schedules import STEPS, Fault, Schedule, drawn, pairs, singles

EVERYTHING = "FLEXMIGRATE_SIMULATE_EVERYTHING"
"""Set it, and no schedule is left out: half an hour on two cores."""


class PlayedTests(SynchronousTestCase):
    def play(self, what: str, last: int, step: int, *, at_least: int) -> None:
        if os.environ.get(EVERYTHING):
            last, step = last * 20, 1
        status, printed = beside(what, last, 0, step)
        summaries = [line.split() for line in printed if line.startswith(f"{what}: ")]
        wrong = "\n".join(line for line in printed if not line.startswith(f"{what}: "))
        self.assertEqual((status, wrong), (0, ""))
        self.assertGreaterEqual(sum(int(words[1]) for words in summaries), at_least)
        # Each of them was looked at again and again.
        self.assertGreater(sum(int(words[3]) for words in summaries), 10 * at_least)

    def test_every_fault_at_every_step_of_the_handover(self) -> None:
        self.play("singles", 100_000, 1, at_least=5_000)

    def test_two_faults_one_after_the_other(self) -> None:
        # 29 has no factor in common with the number of faults: each two of them meet.
        self.play("pairs", 200_000, 29, at_least=4_000)

    def test_any_faults_in_any_order_of_all_that_happens(self) -> None:
        self.play("random", 3_000, 1, at_least=3_000)


class MutationTests(SynchronousTestCase):
    def test_each_is_found(self) -> None:
        status, printed = beside("mutations", 0, 1)
        found = [line for line in printed if line.startswith("found: ")]
        missed = [line for line in printed if line.startswith("not found: ")]
        self.assertEqual((status, missed, len(found)), (0, [], len(MUTATIONS)))

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
        for schedule in [*map(drawn, range(200)), next(singles()), next(pairs())]:
            self.assertEqual(Schedule.parse(str(schedule)), schedule)

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
