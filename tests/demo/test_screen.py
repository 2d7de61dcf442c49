"""The demonstration's screen: a line redrawn on a terminal; elsewhere, few and plain lines."""

from __future__ import annotations

import io
from unittest import mock

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from demo.screen import PLAIN_SECONDS, Screen


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class OnATerminal(SynchronousTestCase):
    def setUp(self) -> None:
        self.out = Terminal()
        self.screen = Screen(self.out)

    def test_each_progress_text_takes_the_place_of_the_last(self) -> None:
        self.screen.progress("one")
        self.screen.progress("two")
        self.assertEqual(self.out.getvalue(), "\r\x1b[Kone\r\x1b[Ktwo")

    def test_a_note_takes_the_place_of_the_progress_and_stays(self) -> None:
        self.screen.progress("one")
        self.screen.note("done")
        self.screen.note("more")
        self.assertEqual(self.out.getvalue(), "\r\x1b[Kone\r\x1b[Kdone\nmore\n")

    def test_a_text_is_cut_where_it_would_wrap(self) -> None:
        with mock.patch.dict("os.environ", COLUMNS="10"):
            self.screen.progress("0123456789")
        self.assertEqual(self.out.getvalue(), "\r\x1b[K012345678")


class Elsewhere(SynchronousTestCase):
    def setUp(self) -> None:
        self.out = io.StringIO()
        self.clock = Clock()
        self.screen = Screen(self.out, self.clock.seconds)

    def test_progress_texts_that_come_fast_are_left_out(self) -> None:
        for text in ("one", "two", "three"):
            self.screen.progress(text)
            self.clock.advance(PLAIN_SECONDS / 2)
        self.assertEqual(self.out.getvalue(), "one\nthree\n")

    def test_what_follows_a_note_is_shown_at_once(self) -> None:
        self.screen.progress("one")
        self.screen.note("done")
        self.screen.progress("two")
        self.assertEqual(self.out.getvalue(), "one\ndone\ntwo\n")

    def test_the_columns_of_a_table_stand_below_one_another(self) -> None:
        self.screen.table([("passes", "3"), ("verdict", "good")])
        self.assertEqual(self.out.getvalue(), "\n  passes   3\n  verdict  good\n\n")
