"""A reply style that tells an observer of each reply it makes: for the log, and for metrics.

A server decides when a connection starts whether its style is wrapped, so that it costs nothing
where nobody observes.
"""

from __future__ import annotations

from typing import Protocol

from flexmigrate.wire.replies import Descriptors, ReplyStyle


class ReplyObserver(Protocol):
    """An observer of the replies of one connection."""

    def replied(self, cookie: int, code: int, *, is_private: bool = False) -> None:
        """The reply to a request was begun; *code* is its error, 0 for success.

        :param is_private: the command isn't the specification's.
        """


class ObservedReplies(ReplyStyle):
    """The replies of *style*, each of which *observer* is told of once."""

    def __init__(self, style: ReplyStyle, observer: ReplyObserver) -> None:
        self._style = style
        self._replied = observer.replied
        self.request = style.request
        self.request_magic = style.request_magic
        self.data_prefix = style.data_prefix
        self.extended = style.extended
        self.fragments = style.fragments

    def pack_read(self, out: bytearray, at: int, cookie: int, offset: int, length: int) -> None:
        self._replied(cookie, 0)
        self._style.pack_read(out, at, cookie, offset, length)

    def read_opening(self, cookie: int, request: int, offset: int, length: int) -> bytes:
        return self._style.read_opening(cookie, request, offset, length)

    def read_closing(self, cookie: int, offset: int) -> bytes:
        self._replied(cookie, 0)
        return self._style.read_closing(cookie, offset)

    def hole(self, cookie: int, request: int, offset: int, length: int) -> bytes:
        return self._style.hole(cookie, request, offset, length)

    def ok(self, cookie: int, offset: int) -> bytes:
        self._replied(cookie, 0)
        return self._style.ok(cookie, offset)

    def error(self, cookie: int, offset: int, code: int, text: str) -> bytes:
        self._replied(cookie, code)
        return self._style.error(cookie, offset, code, text)

    def private(self, cookie: int, offset: int, payload: bytes) -> bytes:
        self._replied(cookie, 0, is_private=True)
        return self._style.private(cookie, offset, payload)

    def status(
        self, cookie: int, offset: int, context: int, descriptors: Descriptors, last: bool
    ) -> bytes:
        if last:
            self._replied(cookie, 0)
        return self._style.status(cookie, offset, context, descriptors, last)
