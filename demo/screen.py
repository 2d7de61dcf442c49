"""What the demonstration shows: a line that is redrawn, notes that stay, a table at the end.

On a terminal the progress line is redrawn in place. Elsewhere (a file, a CI log) each progress
text is a line of its own, and only one in a while is shown.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import TextIO

# Seconds from one progress line to the next where lines pile up.
PLAIN_SECONDS = 1.0

_ERASE = "\r\x1b[K"


class Screen:
    """Where the demonstration is shown."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._redraws = out.isatty()
        self._drawn = False
        self._next = 0.0

    def progress(self, text: str) -> None:
        """Show *text* in the place of the last progress text."""
        if self._redraws:
            # A line that wraps could not be erased.
            self._write(_ERASE + text[: shutil.get_terminal_size().columns - 1])
            self._drawn = True
        elif self._clock() >= self._next:
            self._next = self._clock() + PLAIN_SECONDS
            self._write(f"{text}\n")

    def note(self, text: str) -> None:
        """Show *text*, to stay."""
        self._write(f"{self._erased()}{text}\n")
        self._next = 0.0

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        """Show names and values in two columns."""
        width = max(len(name) for name, _ in rows)
        lines = "".join(f"  {name:<{width}}  {value}\n" for name, value in rows)
        self._write(f"{self._erased()}\n{lines}\n")

    def clear(self) -> None:
        """Leave the cursor on an empty line."""
        self._write(self._erased())

    def _erased(self) -> str:
        drawn, self._drawn = self._drawn, False
        return _ERASE if drawn else ""

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
