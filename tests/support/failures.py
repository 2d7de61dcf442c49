"""Errors that were only logged, made visible: a test that leaves one behind has failed.

A dropped `Deferred` with a failure in it, or an exception that the reactor caught, is told to the
log and to nobody else. This module overhears it; `conftest.py` does so around every test.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

LoggedFailures = list[LogEvent]


@contextlib.contextmanager
def overheard() -> Iterator[LoggedFailures]:
    """Collect every error that is logged while the body runs.

    The body removes (`clear`) what it expected. Whatever is left at its end, or comes to light when
    dropped objects are collected, is raised as one `AssertionError`.
    """
    seen: LoggedFailures = []
    watch = _Watch(seen)
    globalLogPublisher.addObserver(watch)
    try:
        yield seen
        gc.collect()  # a dropped Deferred speaks only now
    finally:
        globalLogPublisher.removeObserver(watch)
    if seen:
        raise AssertionError("\n".join(["errors were logged:", *map(_told, seen)]))


@implementer(ILogObserver)
class _Watch:
    def __init__(self, seen: LoggedFailures) -> None:
        self._seen = seen

    def __call__(self, event: LogEvent) -> None:
        if event.get("isError") or "log_failure" in event:
            self._seen.append(event)


def _told(event: LogEvent) -> str:
    failure: Any = event.get("log_failure")
    traceback = failure.getTraceback() if failure is not None else ""
    return f"{formatEvent(event)}\n{traceback}".rstrip()
