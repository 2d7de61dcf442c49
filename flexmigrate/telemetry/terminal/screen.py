"""Output of a display: a few lines that are redrawn in place, below notes that stay.

On a dumb terminal, in a file or a pipe nothing can be redrawn: there a line is written when what it
is about has changed, or has gone on for a while.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

PLAIN_SECONDS = 10.0
"""Seconds from one line to the next, if lines can't be redrawn and the subject is the same."""

# ECMA-48: to the beginning of the line N lines up; erase from here to the end of the screen.
_UP = "\x1b[{}F"
_ERASE_BELOW = "\x1b[J"


class Screen(Protocol):
    """The interface of the two outputs below."""

    def show(self, lines: Sequence[str], topic: object) -> None:
        """Show *lines* now.

        :param topic: what they are about. Where lines pile up, only the first is written, and only
            if the topic is another than before, or after `PLAIN_SECONDS`.
        """

    def note(self, line: str) -> None:
        """Show *line*, to stay."""

    def clear(self) -> None:
        """Erase the lines, but not the notes."""


class Terminal:
    """A terminal on which lines can be redrawn."""

    def __init__(self, out: TextIO, columns: Callable[[], int] | None = None) -> None:
        self._out = out
        self._columns = columns or (lambda: shutil.get_terminal_size().columns)
        self._shown = 0

    def show(self, lines: Sequence[str], topic: object) -> None:
        """See `Screen`."""
        # A line that wraps could not be erased; in the last column some terminals wrap at once.
        fitting = [line[: max(self._columns() - 1, 1)] for line in lines]
        self._write(self._erased() + "".join(f"{line}\n" for line in fitting))
        self._shown = len(fitting)

    def note(self, line: str) -> None:
        """See `Screen`."""
        self._write(f"{self._erased()}{line}\n")

    def clear(self) -> None:
        """See `Screen`."""
        self._write(self._erased())

    def _erased(self) -> str:
        shown, self._shown = self._shown, 0
        return f"{_UP.format(shown)}{_ERASE_BELOW}" if shown else ""

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


class Plain:
    """An output that can only append lines, such as a file or a pipe."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._topic: object = None
        self._last: str | None = None
        self._next = 0.0

    def show(self, lines: Sequence[str], topic: object) -> None:
        """See `Screen`."""
        line = "; ".join(lines)
        if line != self._last and (topic != self._topic or self._clock() >= self._next):
            self._topic = topic
            self._last = line
            self._next = self._clock() + PLAIN_SECONDS
            self.note(line)

    def note(self, line: str) -> None:
        """See `Screen`."""
        self._out.write(f"{line}\n")
        self._out.flush()

    def clear(self) -> None:
        """See `Screen`."""


def screen_on(out: TextIO) -> Screen:
    """Return a `Terminal` if *out* can redraw lines, else a `Plain`."""
    if out.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Terminal(out)
    return Plain(out)
