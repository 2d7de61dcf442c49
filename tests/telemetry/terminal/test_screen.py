from __future__ import annotations

import io
import os

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.telemetry.terminal.screen import PLAIN_SECONDS, Plain, Terminal, screen_on


class Emulator(io.StringIO):
    """A terminal, as far as `Terminal` uses one: lines, up and erase."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = [""]

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for number, piece in enumerate(text.split("\x1b[")):
            rest = piece
            if number:
                code = next(at for at, char in enumerate(piece) if char.isalpha())
                if piece[code] == "F":
                    del self.lines[len(self.lines) - 1 - int(piece[:code]) :]
                    self.lines.append("")
                rest = piece[code + 1 :]
            first, *others = rest.split("\n")
            self.lines[-1] += first
            self.lines += others
        return len(text)


class TerminalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.out = Emulator()
        self.screen = Terminal(self.out, lambda: 20)

    def test_lines_are_redrawn_in_their_place(self) -> None:
        self.screen.show(["one", "two"], 1)
        self.screen.show(["three"], 1)
        self.assertEqual(self.out.lines, ["three", ""])

    def test_notes_stay_above(self) -> None:
        self.screen.show(["one", "two"], 1)
        self.screen.note("remember")
        self.screen.show(["three"], 1)
        self.assertEqual(self.out.lines, ["remember", "three", ""])
        self.screen.clear()
        self.assertEqual(self.out.lines, ["remember", ""])

    def test_a_line_never_wraps(self) -> None:
        self.screen.show(["x" * 100], 1)
        self.assertEqual(self.out.lines, ["x" * 19, ""])


class PlainTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.out = io.StringIO()
        self.screen = Plain(self.out, lambda: self.now)

    def shown(self) -> list[str]:
        return self.out.getvalue().splitlines()

    def test_a_new_topic_is_shown_at_once_and_an_old_one_after_a_while(self) -> None:
        for second in range(25):
            self.now = float(second)
            self.screen.show([f"at {second}", "and so on"], second // 13)
        self.assertEqual(
            self.shown(),
            [f"at {at}; and so on" for at in (0, int(PLAIN_SECONDS), 13, 13 + int(PLAIN_SECONDS))],
        )

    def test_what_has_not_changed_is_not_shown_again(self) -> None:
        for second in range(100):
            self.now = float(second)
            self.screen.show(["the same"], 1)
        self.assertEqual(self.shown(), ["the same"])

    def test_nothing_but_text_is_written(self) -> None:
        self.screen.show(["one"], 1)
        self.screen.note("two")
        self.screen.clear()
        self.assertEqual(self.out.getvalue(), "one\ntwo\n")


class ChoiceTests(SynchronousTestCase):
    def test_by_what_the_output_is_fit_for(self) -> None:
        self.patch(os, "environ", {"TERM": "xterm"})
        self.assertIsInstance(screen_on(Emulator()), Terminal)
        self.assertIsInstance(screen_on(io.StringIO()), Plain)
        for environ in ({"TERM": "dumb"}, {}):
            self.patch(os, "environ", environ)
            self.assertIsInstance(screen_on(Emulator()), Plain)
