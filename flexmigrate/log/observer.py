"""Writes events: each line whole, whatever threads they come from."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogBeginner
from zope.interface import implementer

from flexmigrate.log.layouts import layout_of
from flexmigrate.log.repeats import Repeats
from flexmigrate.log.settings import OURS, LogSettings, shown_namespace

# The lowest level shown of flexmigrate's own events, and of all others, by verbosity.
_FLOORS = {
    -1: (LogLevel.error, LogLevel.error),
    0: (LogLevel.info, LogLevel.warn),
    1: (LogLevel.debug, LogLevel.debug),
}

# What stands before a line for systemd's journal, as sd-daemon(3) has it: syslog's numbers.
_PRIORITIES = {
    LogLevel.debug: b"<7>",
    LogLevel.info: b"<6>",
    LogLevel.warn: b"<4>",
    LogLevel.error: b"<3>",
    LogLevel.critical: b"<2>",
}


def leads_to_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Return whether what is written to *fd* goes to systemd's journal, which takes a line's
    priority from its beginning: systemd.exec(5), ``$JOURNAL_STREAM``.
    """
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


@implementer(ILogObserver)
class LineObserver:
    """Writes events to the descriptor *fd*, whatever threads they come from.

    :param fd: stays open, and is not closed here.
    :param settings: events below their levels cost one look into a table.
    :param write: ``os.write``, or what stands for it in a test.
    :param context: what flexnbd's layout names beside the process: the image.
    :ivar repeats: decides which lines are only counted; None: all are written.
    """

    def __init__(
        self,
        fd: int,
        settings: LogSettings | None = None,
        write: Callable[[int, bytes], int] = os.write,
        context: str = "",
    ) -> None:
        self.repeats: Repeats | None = None
        self._fd = fd
        settings = settings or LogSettings()
        self._layout = layout_of(settings, context)
        self._floors = _Floors(settings)
        self._write = write
        self._for_journal = leads_to_journal(fd, os.environ)
        self._lines: deque[bytes] = deque()
        self._writing = False
        self._lost = 0
        # Reentrant, because the thread that writes can be interrupted by a signal's handler or a
        # finalizer that logs: with a plain lock it would wait for itself. What such a one has to
        # say waits in the queue for the line under way.
        self._lock = threading.RLock()

    def __call__(self, event: LogEvent) -> None:
        """Write *event*, if its level is high enough. An error of the descriptor is no error here:
        lines are lost, and how many is the first that is written once it works again.
        """
        namespace = str(event.get("log_namespace", "-"))
        if event.get("log_level", LogLevel.info) < self._floors[namespace]:
            return
        if self.repeats is None or self.repeats.admits(event):
            self.write(event)

    def write(self, event: LogEvent) -> None:
        """Write *event*, whatever its level, and however often it has come."""
        line = self._layout(event)
        if line:
            self._lines.append(self._priority(event) + line)
            self._drain()

    def _priority(self, event: LogEvent) -> bytes:
        if not self._for_journal:
            return b""
        return _PRIORITIES[event.get("log_level", LogLevel.info)]

    def _drain(self) -> None:
        with self._lock:
            # The condition is asked again after the flag is down: a line that an interruption has
            # queued between the last pop and that moment is still seen.
            while self._lines and not self._writing:
                self._writing = True
                try:
                    while self._lines:
                        self._write_line(self._lines.popleft())
                finally:
                    self._writing = False

    def _write_line(self, line: bytes) -> None:
        try:
            if self._lost:
                self._write_all(self._note(f"{self._lost} lines of the log were lost"))
                self._lost = 0
            self._write_all(line)
        except OSError:
            self._lost += 1

    def _note(self, text: str) -> bytes:
        """Return a line of our own, in the layout of the others."""
        return self._layout(
            {
                "log_format": "{text}",
                "text": text,
                "log_level": LogLevel.warn,
                "log_namespace": __package__,
                "log_time": time.time(),
            }
        )

    def _write_all(self, line: bytes) -> None:
        """One write, nearly always: a full pipe, or a signal, can cut a long one short."""
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[self._write(self._fd, bytes(rest)) :]
            except BlockingIOError:
                # Whoever gave us a descriptor that doesn't block has made it so for another
                # process that shares it (an ssh session, a test runner): wait as it would.
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()


class _Floors(dict[str, Any]):
    """The lowest level that is shown of each namespace; found once for each.

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


def start_logging(
    settings: LogSettings,
    fd: int = 2,
    context: str = "",
    later: Callable[[float, Callable[[], None]], object] | None = None,
) -> None:
    """Send the process's log to *fd* from now on, with what was logged since it began.

    To be called once. Standard output and standard error stay what they are: the one may carry an
    image's bytes.

    :param context: see `LineObserver`.
    :param later: see `Repeats`.
    """
    observer = LineObserver(fd, settings, context=context)
    observer.repeats = Repeats(observer.write, later)
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
