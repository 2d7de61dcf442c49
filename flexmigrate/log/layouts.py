r"""The layouts of log lines: three functions, each from an event to a line.

One event is one line in all of them. What isn't printable is escaped, so an export's name or a
peer's message can neither end a line nor begin one that we did not write; the escapes are those of
a Python string (JSON's in ``json``), so a reader can undo them, which gives tracebacks their lines
back.

An event is *about* a client or a migration if its logger was made with a source that names one
(`About`); every layout shows it in a place of its own, which no message can forge.

``text``
    ``TIME LEVEL NAMESPACE [ABOUT]: MESSAGE``: the time in UTC (ISO 8601, milliseconds), the level
    of twisted.logger, and the logger's namespace without the leading ``flexmigrate.``.
``json``
    One object (RFC 8259): ``time``, ``level``, ``namespace``, ``message``, what the event is about
    (``client``, ``migration``), ``traceback`` where there is one, and ``fields`` with the values
    in the message that are numbers, booleans or texts.
``flexnbd``
    ``MILLISECONDS:L:PID THREAD CONTEXT FILE:LINE: MESSAGE``: the monotonic clock, the first letter
    of flexnbd's level, and the image as the context (flexnbd's ``src/common/util.h``, ``myloglev``
    and ``levstr``). Events know no line of a source file: it is always 0.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, Protocol

from twisted.logger import LogEvent, LogLevel, eventAsText, formatEvent

from flexmigrate.log.settings import LogSettings, shown_namespace

# A peer may choose 4096 bytes of a line (an export's name), a traceback more: enough for both, and
# no line that is too long for a terminal or a log collector.
MAX_LINE = 16384  # characters of a message, escaped

Layout = Callable[[LogEvent], bytes]

_LETTERS = {"debug": "D", "info": "I", "warn": "W", "error": "E", "critical": "F"}


class About(Protocol):
    """The source of a logger whose events are about a client or a migration."""

    @property
    def log_about(self) -> Mapping[str, str]:
        """Return the fields that name a subject in the log: ``client``, ``migration``, or both."""


def layout_of(settings: LogSettings, context: str = "") -> Layout:
    """Return the layout in *settings*.

    :param context: the image, which flexnbd's layout names beside the process.
    """
    if settings.form == "json":
        return format_json
    if settings.form == "flexnbd":
        return lambda event: format_flexnbd(event, context)
    return format_line


def format_line(event: LogEvent) -> bytes:
    """Return the line for *event* in the layout ``text``; empty if the event has no text."""
    text = _text(event)
    if not text:
        return b""
    level = _level(event)
    about = "".join(f" [{one_line(each)}]" for each in _abouts(event))
    return f"{_stamp(event)} {level:<5} {_namespace(event)}{about}: {text}\n".encode()


def format_json(event: LogEvent) -> bytes:
    """Return the line for *event* in the layout ``json``; empty if the event has no text."""
    message = formatEvent(event)
    traceback = _traceback(event)
    if not message and not traceback:
        return b""
    line: dict[str, Any] = {
        "time": _stamp(event),
        "level": _level(event),
        "namespace": _namespace(event),
        **_about(event),
        "message": _bounded(message),
    }
    if fields := _fields(event):
        line["fields"] = fields
    if traceback:
        line["traceback"] = _bounded(traceback)
    return f"{json.dumps(line)}\n".encode()


def format_flexnbd(event: LogEvent, context: str = "") -> bytes:
    """Return the line for *event* in the layout ``flexnbd``; empty if the event has no text."""
    text = _text(event)
    if not text:
        return b""
    # The event has the time of day; its age on the monotonic clock is needed.
    now = time.time()
    ago = max(0.0, now - (event.get("log_time") or now))  # it may have been set back since
    milliseconds = max(0, int((time.monotonic() - ago) * 1000))
    file = "/".join(("flexmigrate", *_namespace(event).split("."))) + ".py"
    about = "".join(f"{one_line(each)}: " for each in _abouts(event))
    return (
        f"{milliseconds}:{_LETTERS.get(_level(event), 'E')}:{os.getpid()}"
        f" {threading.get_ident():#x} {one_line(context)} {file}:0: {about}{text}\n"
    ).encode()


def one_line(text: str) -> str:
    r"""Return *text* with backslashes and all that isn't printable escaped, as in ``\n``."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        char if char.isprintable() and char != "\\" else char.encode("unicode_escape").decode()
        for char in text
    )


def _text(event: LogEvent) -> str:
    text = eventAsText(event, includeTimestamp=False, includeSystem=False).rstrip("\n")
    return _bounded(one_line(text))


def _level(event: LogEvent) -> str:
    return str(event.get("log_level", LogLevel.info).name)


def _namespace(event: LogEvent) -> str:
    return shown_namespace(one_line(str(event.get("log_namespace", "-"))))


def _stamp(event: LogEvent) -> str:
    when = event.get("log_time")
    if when is None:
        return "-"
    moment = datetime.fromtimestamp(when, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _about(event: LogEvent) -> Mapping[str, str]:
    about = getattr(event.get("log_source"), "log_about", None)
    return about if isinstance(about, Mapping) else {}


def _abouts(event: LogEvent) -> list[str]:
    return [f"{what} {which}" for what, which in _about(event).items()]


def _fields(event: LogEvent) -> dict[str, Any]:
    return {
        key: _bounded(value) if isinstance(value, str) else value
        for key, value in event.items()
        if not key.startswith("log_")
        # JSON has no number for what isn't finite.
        and (isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value)))
    }


def _traceback(event: LogEvent) -> str:
    if event.get("log_failure") is None:
        return ""
    bare = {"log_failure": event["log_failure"]}
    return eventAsText(bare, includeTimestamp=False, includeSystem=False).strip("\n")


def _bounded(text: str) -> str:
    if len(text) <= MAX_LINE:
        return text
    return f"{text[:MAX_LINE]}... ({len(text) - MAX_LINE} more)"
