"""Every request and every reply in the log, for looking into a fault.

A transmission of its own kind, which a server chooses when a connection starts: the path of a
request never asks whether it is to be logged, and costs the same as if this did not exist. What it
sees is what passes through the reply style: each header is unpacked there, each reply made there.

A request is logged when its header is taken, its reply when it is made; both have the client's
cookie. The payload of a write may still be on its way between the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from struct import Struct
from typing import Any, cast

from twisted.logger import Logger

from flexmigrate.server.observed_replies import ObservedReplies
from flexmigrate.server.transmission import Transmission
from flexmigrate.wire.agreement import Agreement
from flexmigrate.wire.constants import Command, CommandFlag, ErrorCode, name_of
from flexmigrate.wire.replies import ReplyStyle


class LoggedTransmission(Transmission):
    """A transmission whose requests and replies are logged."""

    def _chosen_style(self, agreement: Agreement) -> ReplyStyle:
        log = Logger(source=self._host)
        style = super()._chosen_style(agreement)
        self._logged = _RequestLog(style, log, time.monotonic)
        observed = ObservedReplies(style, self._logged)
        # It has the two attributes that are used of a Struct.
        observed.request = cast("Struct", _Header(style.request.size, self._logged.take))
        return observed

    def serve(self, at: int, end: int) -> int:
        self._logged.begin_batch(at)
        left = super().serve(at, end)
        self._logged.end_batch(left)
        return left


class _RequestLog:
    """Logs each request whose header is unpacked, and each reply (``ReplyObserver``).

    :param style: of the connection.
    :param seconds: the clock.
    """

    def __init__(self, style: ReplyStyle, log: Logger, seconds: Callable[[], float]) -> None:
        self._log = log
        self._seconds = seconds
        self._unpack = style.request.unpack_from
        # Where the last header stands, and whether the first of the next batch is the same one.
        self._seen_at = -1
        self._again = False
        # When each request was taken; a client may give several the same cookie.
        self._taken: dict[int, list[float]] = {}
        self._magic = style.request_magic

    def begin_batch(self, at: int) -> None:
        """A buffer with other bytes, unless its first header was left over."""
        self._seen_at = at if self._again else -1

    def end_batch(self, at: int) -> None:
        """Forget the requests from *at* on: they will be seen again."""
        self._again = at == self._seen_at

    def take(self, buffer: Any, at: int) -> tuple[Any, ...]:
        """Unpack a header, and log it, once."""
        header = self._unpack(buffer, at)
        magic, flags, command, cookie, offset, length = header
        # One is looked at again where the replies before it had to be sent first, at once or, if
        # that made the connection wait for its client, in the next batch.
        if magic == self._magic and at != self._seen_at:
            self._seen_at = at
            self._log.info(
                "request {cookie:#x}: {command}, {length} bytes at {offset}, flags {flags}",
                cookie=cookie,
                command=name_of(Command, command),
                length=length,
                offset=offset,
                flags=name_of(CommandFlag, flags),
                log_every=True,
            )
            if command != Command.DISC:
                self._taken.setdefault(cookie, []).append(self._seconds())
        return header

    def replied(self, cookie: int, code: int, *, is_private: bool = False) -> None:
        """Log a reply."""
        times = self._taken.get(cookie)
        if not times:
            return  # the header was no request, or its reply was told of when it was opened
        milliseconds = (self._seconds() - times.pop(0)) * 1000
        if not times:
            del self._taken[cookie]
        self._log.info(
            "reply {cookie:#x}: {result} after {milliseconds:.3f} ms",
            cookie=cookie,
            result=name_of(ErrorCode, code) if code else "ok",
            milliseconds=milliseconds,
            log_every=True,
        )


class _Header:
    """Stands for the Struct of the requests."""

    def __init__(self, size: int, unpack_from: Callable[[Any, int], tuple[Any, ...]]) -> None:
        self.size = size
        self.unpack_from = unpack_from
