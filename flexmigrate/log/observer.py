"""Makes lines of events, and has them written: those of a level that is shown, and not repeated."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogBeginner
from zope.interface import implementer

from flexmigrate.log.layouts import layout_of
from flexmigrate.log.lines import Later, LineWriter, never_blocking
from flexmigrate.log.repeats import Repeats
from flexmigrate.log.settings import OURS, LogSettings, shown_namespace

# The lowest level shown of flexmigrate's own events, and of all others, by verbosity.
_FLOORS = {
    -1: (LogLevel.error, LogLevel.error),
    0: (LogLevel.info, LogLevel.warn),
    1: (LogLevel.debug, LogLevel.debug),
}

# The prefixes of lines for systemd's journal (sd-daemon(3)): syslog's numbers.
_PRIORITIES = {
    LogLevel.debug: b"<7>",
    LogLevel.info: b"<6>",
    LogLevel.warn: b"<4>",
    LogLevel.error: b"<3>",
    LogLevel.critical: b"<2>",
}


def leads_to_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Return whether *fd* leads to systemd's journal, which takes a line's
    priority from its beginning: systemd.exec(5), ``$JOURNAL_STREAM``.
    """
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


@implementer(ILogObserver)
class LineObserver:
    """An observer that writes events to the descriptor *fd*, whatever thread they come from.

    :param fd: stays open, and is not closed here.
    :param settings: events below their levels cost one look into a table.
    :param write: ``os.write``, or its replacement in a test.
    :param context: the image, which flexnbd's layout names beside the process.
    :param later: see `LineWriter`.
    :ivar lines: writes them.
    :ivar repeats: decides which lines are only counted; None: all are written.
    """

    def __init__(
        self,
        fd: int,
        settings: LogSettings | None = None,
        write: Callable[[int, bytes], int] = os.write,
        context: str = "",
        later: Later | None = None,
    ) -> None:
        self.repeats: Repeats | None = None
        settings = settings or LogSettings()
        self._layout = layout_of(settings, context)
        self._floors = _Floors(settings)
        self._for_journal = leads_to_journal(fd, os.environ)
        self.lines = LineWriter(fd, write, self._lost, later)

    def __call__(self, event: LogEvent) -> None:
        """Write *event*, if its level is high enough, and it isn't only counted."""
        namespace = str(event.get("log_namespace", "-"))
        if event.get("log_level", LogLevel.info) < self._floors[namespace]:
            return
        if self.repeats is None or self.repeats.admits(event):
            self.write(event)

    def write(self, event: LogEvent) -> None:
        """Write *event*, whatever its level, and however often it has come."""
        line = self._layout(event)
        if line:
            self.lines.write(self._priority(event) + line)

    def _priority(self, event: LogEvent) -> bytes:
        if not self._for_journal:
            return b""
        return _PRIORITIES[event.get("log_level", LogLevel.info)]

    def _lost(self, count: int) -> bytes:
        """Return the line that says that so many were lost."""
        event = {
            "log_format": "{count} lines of the log were lost",
            "count": count,
            "log_level": LogLevel.warn,
            "log_namespace": __package__,
            "log_time": time.time(),
        }
        return self._priority(event) + self._layout(event)


class _Floors(dict[str, Any]):
    """The lowest level that is logged, by namespace; found once for each.

    There are as many namespaces as modules that log: what is remembered is bounded.
    """

    def __init__(self, settings: LogSettings) -> None:
        self._ours, self._theirs = _FLOORS[settings.verbosity]
        self._rules = {name: LogLevel.levelWithName(level) for name, level in settings.levels}

    def __missing__(self, namespace: str) -> Any:
        self[namespace] = self._floor(namespace)
        return self[namespace]

    def _floor(self, namespace: str) -> Any:
        name = shown_namespace(namespace)
        while name:
            if name in self._rules:
                return self._rules[name]
            name = name.rpartition(".")[0]
        if f"{namespace}.".startswith(f"{OURS}."):
            return self._rules.get(OURS, self._ours)
        return self._theirs


def observer_of(
    settings: LogSettings, fd: int, context: str = "", later: Later | None = None
) -> LineObserver:
    """Return an observer for a server's log, which goes to *fd*: lines that repeat themselves are
    counted, and nothing waits for who reads it. To be called once.

    :param context: see `LineObserver`.
    :param later: see `Repeats` and `LineWriter`.
    """
    to, write = (fd, os.write) if later is None else never_blocking(fd)
    observer = LineObserver(to, settings, write, context, later)
    observer.repeats = Repeats(observer.write, later)
    atexit.register(observer.lines.finish)
    return observer


def start_logging(
    settings: LogSettings, fd: int = 2, context: str = "", later: Later | None = None
) -> None:
    """Send the process's log to *fd* from now on, including events since its start.

    To be called once. Standard output and standard error are unchanged: the former may carry an
    image's bytes.

    :param context: see `LineObserver`.
    :param later: see `observer_of`.
    """
    observer = observer_of(settings, fd, context, later)
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
