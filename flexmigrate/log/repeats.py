"""Lines that repeat themselves are counted, and not written.

A client decides how many requests are refused, and a disk how many fail: each would make a line.
Lines are alike if they come from the same place in the program, by its namespace and format, and
are about the same client or migration. Of those, some are written in each second; the others are
counted, and once the second is over the last of them is written with the number of the others.
Whatever clients a line is about, there is a second limit for its format: who connects again for
each line is always another client.

So what happens once is always written. What has to be written however often it comes says so:
``log_every=True``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from twisted.logger import LogEvent, LogLevel, formatEvent

MOST = 10
"""Lines that are alike, and written, in each `WINDOW`."""

MOST_OF_ALL = 2000
"""Likewise, of one format, whomever they are about: a host's clients that come back at once after a
handover each have theirs."""

WINDOW = 1.0
"""Seconds."""

MOST_KINDS = 4096
"""Kinds of lines, and formats, that are counted in each window: many more than clients that make a
line in a second. Of others all are written."""


class Repeats:
    """See the module. Used by whatever thread has something to log.

    :param later: calls back after so many seconds, so that what was counted is told though nothing
        else is logged; None: it is told with the next line.
    :param tell: is told of what was counted, as an event.
    """

    def __init__(
        self,
        tell: Callable[[LogEvent], object],
        later: Callable[[float, Callable[[], None]], object] | None = None,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._later = later
        self._seconds = seconds
        self._ends = 0.0  # of the window
        self._written: dict[Any, int] = {}
        self._counted: dict[Any, tuple[int, LogEvent]] = {}
        self._lock = threading.RLock()

    def admits(self, event: LogEvent) -> bool:
        """Return whether to write *event*; if not, it is counted."""
        if event.get("log_every") or event.get("log_level") is LogLevel.critical:
            return True
        with self._lock:
            now = self._seconds()
            if now >= self._ends:
                self._end_window()
                self._ends = now + WINDOW
            form = event.get("log_namespace"), event.get("log_format")
            kind = *form, _about(event)
            written, of_all = self._written.get(kind, 0), self._written.get(form, 0)
            if written < MOST and of_all < MOST_OF_ALL:
                for each, count in ((form, of_all), (kind, written)):
                    if count or len(self._written) < MOST_KINDS:
                        self._written[each] = count + 1
                return True
            if of_all >= MOST_OF_ALL:
                kind = *form, ""
            if not self._counted and self._later is not None:
                self._later(max(self._ends - now, 0.0) + 0.01, self.tell)
            self._counted[kind] = self._counted.get(kind, (0, event))[0] + 1, event
            return False

    def tell(self) -> None:
        """Tell of what was counted in a window that is over."""
        with self._lock:
            if self._seconds() >= self._ends:
                self._end_window()

    def _end_window(self) -> None:
        counted = self._counted
        self._written, self._counted = {}, {}
        for count, event in counted.values():
            if count == 1:
                self._tell(event)
                continue
            self._tell(
                {
                    **{key: event[key] for key in event if key in _KEPT},
                    "log_format": "{text} … and {count} more in {seconds:.0f} s",
                    "text": formatEvent(event),
                    "count": count - 1,
                    "seconds": WINDOW,
                }
            )


_KEPT = frozenset(("log_level", "log_logger", "log_namespace", "log_source", "log_time"))
"""Keys of an event that hold for a line about many, too. Not ``log_failure``, whose mere presence
has Twisted look for a traceback; nor what Twisted keeps of the event's text."""


def _about(event: LogEvent) -> str:
    about = getattr(event.get("log_source"), "log_about", None)
    return str(sorted(about.items())) if isinstance(about, dict) else ""
