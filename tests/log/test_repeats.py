"""Lines that repeat themselves are counted."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.logger import LogLevel, eventAsText, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.log.repeats import MOST, MOST_KINDS, MOST_OF_ALL, WINDOW, Repeats


class Client:
    def __init__(self, number: int) -> None:
        self.log_about = {"client": str(number)}


class RepeatsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.told: list[dict[str, Any]] = []
        self.repeats = Repeats(self.told.append, self.clock.callLater, self.clock.seconds)
        self.clients = [Client(number) for number in range(10)]

    def log(self, text: str = "refused: {why}", client: int = 0, **values: Any) -> bool:
        event = {
            "log_format": text,
            "log_namespace": "flexmigrate.server",
            "log_level": LogLevel.info,
            "log_source": self.clients[client],
            "why": "a bad flag",
            **values,
        }
        return self.repeats.admits(event)

    def texts(self) -> list[str]:
        return [formatEvent(event) for event in self.told]

    def test_the_first_are_written_and_the_others_told_of_when_the_second_is_over(self) -> None:
        self.assertEqual([self.log() for _ in range(MOST + 743)], [True] * MOST + [False] * 743)
        self.assertEqual(self.told, [])
        self.clock.advance(2 * WINDOW)
        self.assertEqual(self.texts(), ["refused: a bad flag … and 742 more in 1 s"])
        (event,) = self.told
        self.assertIs(event["log_source"], self.clients[0])
        self.assertEqual(event["log_level"], LogLevel.info)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_next_second_begins_anew(self) -> None:
        for _ in range(3):
            self.assertEqual([self.log() for _ in range(MOST + 2)].count(True), MOST)
            self.clock.advance(WINDOW)
        self.log()
        self.assertEqual(len(self.told), 3)

    def test_a_single_one_beyond_is_written_as_it_is(self) -> None:
        for _ in range(MOST + 1):
            self.log()
        self.clock.advance(2 * WINDOW)
        self.assertEqual(self.texts(), ["refused: a bad flag"])

    def test_others_are_written_meanwhile(self) -> None:
        for _ in range(100):
            self.log()
        self.assertTrue(self.log("another"))
        self.assertTrue(self.log(client=1))
        self.assertTrue(self.log(log_namespace="flexmigrate.image"))

    def test_what_is_critical_or_wants_to_be_is_always_written(self) -> None:
        for _ in range(10 * MOST):
            self.assertTrue(self.log(log_every=True))
            self.assertTrue(self.log(log_level=LogLevel.critical))

    def test_whose_line_is_about_another_client_each_time(self) -> None:
        self.clients = [Client(number) for number in range(3 * MOST_OF_ALL)]
        written = [self.log(client=number) for number in range(3 * MOST_OF_ALL)]
        self.assertEqual(written.count(True), MOST_OF_ALL)
        self.clock.advance(2 * WINDOW)
        self.assertEqual(len(self.told), 1)
        self.assertIn(f"and {2 * MOST_OF_ALL - 1} more", self.texts()[0])

    def test_what_is_remembered_is_bounded(self) -> None:
        for number in range(3 * MOST_KINDS):
            self.assertTrue(self.log(f"text {number}", client=number % 10))
        self.assertEqual(len(self.repeats._written), MOST_KINDS)

    def test_a_traceback_is_told_once(self) -> None:
        for _ in range(MOST + 5):
            self.log(log_failure="a failure")
        self.clock.advance(2 * WINDOW)
        self.assertNotIn("log_failure", self.told[0])
        # The layouts make their lines by this: it says so where a failure can't be shown.
        text = eventAsText(self.told[0], includeTimestamp=False, includeSystem=False)
        self.assertEqual(text, "refused: a bad flag … and 4 more in 1 s")
