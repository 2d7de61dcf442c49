"""One request that waits for its reply: what was asked for, and how much of it has been answered.

This module decides whether a part of a reply fits the request, and where its bytes belong. It knows
neither how replies are framed nor how their bytes arrive. A part that does not fit raises
:class:`RemoteProtocolError`; the connection is then of no more use.

Whatever a server sends, a request holds no more than its caller's buffer, ``MAX_SPANS`` spans,
``MAX_EXTENTS_KEPT`` extents for each context that was asked for, and one error.

Specification: proto.md, "Structured reply types" and "Request types".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from flexmigrate.errors import RemoteProtocolError, RequestFailed
from flexmigrate.wire.constants import ERROR_TEXTS, Command, ErrorCode
from flexmigrate.wire.handover import command_name, is_private

MAX_SPANS = 4096
"""Separate spans of one read that may be held at a time. Servers normally send the chunks of a read
in ascending order, which makes one span; this bounds the memory for those that don't."""

MAX_EXTENTS_KEPT = 64 * 1024
"""Extents kept for one context (about 10 MiB of Python's numbers). A server may always describe
less than was asked for, so the rest is dropped, and the caller asks again from there.
"""

_ZEROES = bytes(64 * 1024)
_KNOWN_ERRORS = frozenset(int(code) for code in ErrorCode)


class PendingRequest:
    """A request in flight, and its reply so far.

    :ivar command: the request's type.
    :ivar offset: in the export, in bytes.
    :ivar length: of the effect on the export, in bytes; a read's buffer has exactly this length.
    :ivar extents: for BLOCK_STATUS: (length in bytes, status flags) of consecutive extents from
        `offset`, by context id. The last may end beyond the request.
    :ivar failure: the first error that the server reported, or None.
    :ivar payload: the payload of the reply to a private command (``wire.handover``); else None.
    """

    __slots__ = (
        "_contexts",
        "_one_extent",
        "_received",
        "_spans",
        "_told",
        "_unfragmented",
        "_view",
        "command",
        "extents",
        "failure",
        "length",
        "offset",
        "payload",
    )

    def __init__(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        view: memoryview | None = None,
        unfragmented: bool = False,
        contexts: Iterable[int] = (),
        one_extent: bool = False,
    ) -> None:
        """Describe a request that is about to be sent.

        :param view: the destination of a read's data: writable bytes, `length` of them.
        :param unfragmented: the request carries DF, so that content may come in one chunk only.
        :param contexts: ids of the meta contexts that a BLOCK_STATUS asks for.
        :param one_extent: the request carries REQ_ONE.
        """
        self.command = command
        self.offset = offset
        self.length = length
        self.extents: dict[int, list[tuple[int, int]]] = {}
        self.failure: RequestFailed | None = None
        self.payload: bytes | None = None
        self._view = view
        self._unfragmented = unfragmented
        self._contexts = frozenset(contexts)
        self._one_extent = one_extent
        self._received = 0
        self._spans = _Spans()
        self._told = 0

    def __str__(self) -> str:
        name = command_name(self.command)
        return f"{name} of {self.length} bytes at {self.offset}" if self.length else name

    def place(self, offset: int, length: int) -> memoryview:
        """Return the part of the buffer that *length* bytes of content from *offset* go into.

        Each byte of a read is handed out once: asking again is the server's error.
        """
        view = self._view
        if view is None:
            raise RemoteProtocolError(f"the server sent data in reply to {self}")
        start = offset - self.offset
        end = start + length
        if length <= 0 or start < 0 or end > self.length:
            raise RemoteProtocolError(
                f"the server sent {length} bytes at {offset} in reply to {self}"
            )
        if self._unfragmented and self._received:
            raise RemoteProtocolError(f"the server sent two pieces in reply to {self} with DF")
        if not self._spans.add(start, end):
            raise RemoteProtocolError(
                f"the server sent bytes twice, or in more than {MAX_SPANS} pieces out of order, "
                f"in reply to {self}"
            )
        self._received += length
        return view[start:end]

    def place_hole(self, offset: int, length: int) -> None:
        """Fill the part of the buffer that *length* bytes from *offset* go into with zeroes."""
        hole = self.place(offset, length)
        for at in range(0, length, len(_ZEROES)):
            size = min(len(_ZEROES), length - at)
            hole[at : at + size] = _ZEROES[:size]

    def open_status(self, context: int) -> None:
        """Begin the answer for one context of a BLOCK_STATUS; `add_extents` continues it."""
        if context not in self._contexts:
            raise RemoteProtocolError(f"the server sent context {context} in reply to {self}")
        if context in self.extents:
            raise RemoteProtocolError(f"the server sent context {context} twice for {self}")
        self.extents[context] = []
        self._told = 0

    def add_extents(self, context: int, descriptors: Iterable[tuple[int, int]]) -> None:
        """Add (length, flags) of further extents to the answer that was begun last."""
        kept = self.extents[context]
        limit = 1 if self._one_extent else self.length
        told = self._told
        for length, flags in descriptors:
            if not length or told >= limit:
                raise RemoteProtocolError(
                    f"the server sent an empty extent, or one too many, in reply to {self}"
                )
            told += length
            if len(kept) < MAX_EXTENTS_KEPT:
                kept.append((length, flags))
        self._told = told
        if self._one_extent and told > self.length:
            raise RemoteProtocolError(
                f"the server sent an extent of {told} bytes in reply to {self} with REQ_ONE"
            )

    def tell(self, payload: bytes) -> None:
        """Take the payload of the reply to a private command."""
        if not is_private(self.command) or self.payload is not None:
            raise RemoteProtocolError(f"the server sent a payload in reply to {self}")
        self.payload = payload

    def fail(self, number: int, message: str = "", at: int | None = None) -> None:
        """Note an error that the server reported; only the first one is kept.

        :param number: as it came; one that the specification doesn't know counts as EINVAL.
        :param message: the server's own words, if it had any.
        :param at: the offset in the export where the error occurred, if the server said so.
        """
        if not number:
            raise RemoteProtocolError(f"the server reported error 0 in reply to {self}")
        if at is not None and not self.offset <= at < self.offset + self.length:
            raise RemoteProtocolError(f"the server reported an error at {at} in reply to {self}")
        if self.failure is not None:
            return
        known = ErrorCode(number) if number in _KNOWN_ERRORS else ErrorCode.EINVAL
        words = ERROR_TEXTS[known] if known == number else f"error {number}"
        told = _printable(message)
        text = f"{self} failed{'' if at is None else f' at {at}'}: "
        text += told if words in told else f"{words}: {told}" if told else words
        self.failure = RequestFailed(int(known), text)

    def finish(self) -> None:
        """Note that the reply has ended; RemoteProtocolError if a part of it is missing."""
        self._view = None
        if self.failure is not None:
            return
        if self.command == Command.READ and self._received != self.length:
            raise RemoteProtocolError(
                f"the server sent {self._received} bytes in reply to {self}, and called it done"
            )
        if is_private(self.command) and self.payload is None:
            raise RemoteProtocolError(f"the server sent no payload in reply to {self}")
        if len(self.extents) != len(self._contexts):
            raise RemoteProtocolError(f"the server left out a context in reply to {self}")


class _Spans:
    """The bytes of a read that have come, as ascending spans that neither overlap nor touch."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> bool:
        """Add a span; return False, and change nothing, if it overlaps or is one too many."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, start)
        if (at and ends[at - 1] > start) or (at < len(starts) and starts[at] < end):
            return False
        follows = at > 0 and ends[at - 1] == start
        precedes = at < len(starts) and starts[at] == end
        if follows and precedes:
            del starts[at], ends[at - 1]
        elif follows:
            ends[at - 1] = end
        elif precedes:
            starts[at] = start
        elif len(starts) < MAX_SPANS:
            starts.insert(at, start)
            ends.insert(at, end)
        else:
            return False
        return True


def _printable(text: str) -> str:
    """Replace characters with which a peer could control a terminal or forge a log line."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
