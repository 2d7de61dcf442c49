r"""The log: one event is one line, and the line is written whole.

A line is ``TIME LEVEL NAMESPACE: MESSAGE``: the time in UTC (ISO 8601, milliseconds), the level of
twisted.logger, and the logger's namespace without the leading ``flexmigrate.``.

Everything that isn't printable is escaped as Python escapes it in a string, and so are backslashes:
an export's name or a peer's message can neither end a line nor begin one that we did not write, and
a reader can undo it, which gives tracebacks their lines back.
"""

from __future__ import annotations

import enum
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, globalLogBeginner
from zope.interface import implementer

# A peer may choose 4096 bytes of a line (an export's name), a traceback more: enough for both, and
# no line that a terminal or a log collector chokes on.
MAX_LINE = 16384  # characters of a message, escaped

_OURS = "flexmigrate."


class Verbosity(enum.IntEnum):
    """How much is logged: from which level on, for us and for everybody else.

    Twisted tells, as information, of each port and factory that starts or stops: with
    ``--verbose`` only.
    """

    QUIET = -1
    NORMAL = 0
    VERBOSE = 1

    @property
    def floors(self) -> tuple[Any, Any]:
        """The lowest `LogLevel` shown of flexmigrate's own events, and of all others."""
        return _FLOORS[self]

    def stdout_observer(self) -> LineObserver:
        """Return what ``twistd --logger`` wants: an observer that writes to standard output."""
        return LineObserver(1, self)


_FLOORS = {
    Verbosity.QUIET: (LogLevel.error, LogLevel.error),
    Verbosity.NORMAL: (LogLevel.info, LogLevel.warn),
    Verbosity.VERBOSE: (LogLevel.debug, LogLevel.debug),
}


@implementer(ILogObserver)
class LineObserver:
    """Writes events to the descriptor *fd*, whatever threads they come from.

    :param fd: stays open, and is not closed here.
    :param verbosity: events below it cost one comparison.
    :param write: ``os.write``, or what stands for it in a test.
    """

    def __init__(
        self,
        fd: int,
        verbosity: Verbosity = Verbosity.NORMAL,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self._fd = fd
        self._our_floor, self._their_floor = verbosity.floors
        self._write = write
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
        level = event.get("log_level", LogLevel.info)
        ours = (namespace + ".").startswith(_OURS)
        if level < (self._our_floor if ours else self._their_floor):
            return
        line = format_line(event)
        if line:
            self._lines.append(line)
            self._drain()

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
                self._write_all(_note(f"{self._lost} lines of the log were lost"))
                self._lost = 0
            self._write_all(line)
        except OSError:
            self._lost += 1

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


def format_line(event: LogEvent) -> bytes:
    """Return the line for *event*, with its end; empty if the event has no text."""
    text = eventAsText(event, includeTimestamp=False, includeSystem=False).rstrip("\n")
    if not text:
        return b""
    level = event.get("log_level", LogLevel.info).name
    namespace = one_line(str(event.get("log_namespace", "-"))).removeprefix(_OURS)
    return _layout(event.get("log_time"), level, namespace, _bounded(one_line(text)))


def one_line(text: str) -> str:
    r"""Return *text* with backslashes and all that isn't printable escaped, as in ``\n``."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode()
        for char in text
    )


def start_logging(verbosity: int, fd: int = 2) -> None:
    """Send the process's log to *fd* from now on, with what was logged since it began.

    To be called once. Standard output and standard error stay what they are: the one may carry an
    image's bytes.
    """
    observer = LineObserver(fd, Verbosity(verbosity))
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)


def _bounded(text: str) -> str:
    if len(text) <= MAX_LINE:
        return text
    return f"{text[:MAX_LINE]}... ({len(text) - MAX_LINE} more)"


def _note(text: str) -> bytes:
    return _layout(time.time(), "warn", "log", text)


def _layout(when: float | None, level: str, namespace: str, text: str) -> bytes:
    stamp = "-"
    if when is not None:
        moment = datetime.fromtimestamp(when, timezone.utc)
        stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{stamp} {level:<5} {namespace}: {text}\n".encode()
