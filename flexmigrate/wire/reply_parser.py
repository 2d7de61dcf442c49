"""The client's parser of replies in the transmission phase.

It finds out where replies begin and end, and which request each answers;
:mod:`flexmigrate.wire.pending` judges their content. Bytes arrive in a buffer that the parser
provides. While the data of a large read arrives, this buffer is the reader's own, so that bulk data
is never copied or joined; everything else passes through one small buffer that is reused.

Input that a conforming server can't have sent raises :class:`RemoteProtocolError`. Answers that
were complete before that can still be taken; the parser accepts no more bytes.

Specification: proto.md, "Simple reply message", "Structured reply chunk message", "Structured reply
types"; extended replies as in the branch extension-ext-header.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NoReturn

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire.constants import (
    CHUNK_ERROR_BIT,
    EXTENDED_REPLY_MAGIC,
    MAX_STRING,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    ChunkFlag,
    Command,
    name_of,
)
from flexmigrate.wire.handover import MAX_PRIVATE_PAYLOAD, PRIVATE_CHUNK, is_private
from flexmigrate.wire.pending import PendingRequest
from flexmigrate.wire.replies import EXTENDED, SIMPLE, STRUCTURED

BUFFER = 64 * 1024
"""Bytes of the reused buffer: room for many short replies from one wake-up."""

DIRECT = 16 * 1024
"""Bytes. If at least this much of a read is still missing, it is received straight into the
reader's buffer. To copy fewer bytes is cheaper than another system call."""

MAX_STATUS_EXTENTS = 2**20
"""Extents in one chunk: the specification's own limit ("Structured reply types")."""

MAX_ERROR_PAYLOAD = 2 * MAX_STRING
"""Bytes of an error chunk. The known kinds need 14 and a message of at most 4096; the rest is room
for fields that later kinds may add."""

_DONE = int(ChunkFlag.DONE)  # an IntFlag's own & takes a microsecond

_MAGIC = Struct(">I")
_LENGTH = Struct(">I")
_OFFSET = Struct(">Q")
_HOLE = Struct(">QI")
_ERROR = Struct(">IH")
_STATUS_HEAD = Struct(">I")
_STATUS = Struct(">II")
_STATUS_EXT_HEAD = Struct(">II")
_STATUS_EXT = Struct(">QQ")


class ReplyParser:
    """Parser of the replies in a server's stream of bytes.

    A step is a method that consumes what it can of the buffered bytes, and returns whether it made
    progress. Each step chooses the next one when it ends, so nothing has to look at a state.
    """

    def __init__(self, *, structured: bool = False, extended: bool = False) -> None:
        """Begin where negotiation ended.

        :param structured: structured replies were agreed on.
        :param extended: extended headers were agreed on; they take precedence.
        """
        self._memory = memoryview(bytearray(BUFFER))
        self._start = 0
        self._end = 0
        self._pending: dict[int, PendingRequest] = {}
        self._answered: list[tuple[int, PendingRequest]] = []
        self._large_reads = 0
        # The chunk that is being parsed: its request, whether it is the last of its reply, how much
        # of its payload is missing, and what only some kinds of chunks have.
        self._request = _NOTHING
        self._cookie = 0
        self._last = False
        self._left = 0
        self._content = _NO_CONTENT
        self._landing: memoryview | None = None
        self._context = 0
        self._has_offset = False
        self._structured = structured
        self._status_head, self._status = _STATUS_HEAD, _STATUS
        self._head = self._simple_or_structured if structured else self._simple
        if extended:
            self._status_head, self._status = _STATUS_EXT_HEAD, _STATUS_EXT
            self._head = self._extended
        self._step: Callable[[], bool] = self._head
        # The most that can precede a read's data. If nothing else can come, no more than this is
        # received into the small buffer, so that the data's first bytes needn't be copied either.
        if extended:
            self._head_room = EXTENDED.size + _OFFSET.size
        else:
            self._head_room = STRUCTURED.size + _OFFSET.size if structured else SIMPLE.size
        self._chunks: dict[int, Callable[[int], None]] = {
            Chunk.NONE: self._begin_none,
            Chunk.OFFSET_DATA: self._begin_data,
            Chunk.OFFSET_HOLE: self._begin_hole,
            (Chunk.BLOCK_STATUS_EXT if extended else Chunk.BLOCK_STATUS): self._begin_status,
            PRIVATE_CHUNK: self._begin_private,
        }

    @property
    def in_flight(self) -> int:
        """The number of requests without a complete reply."""
        return len(self._pending)

    def expect(self, cookie: int, request: PendingRequest) -> None:
        """Register a request before it is sent."""
        if cookie in self._pending:
            raise LocalProtocolError(f"the cookie {cookie} is in flight already")
        self._pending[cookie] = request
        self._large_reads += _is_large_read(request)

    def abandon(self) -> list[int]:
        """Drop all requests in flight, and with them the readers' buffers; return their cookies.

        No bytes are taken from then on.
        """
        cookies = list(self._pending)
        self._pending.clear()
        self._request, self._content, self._landing = _NOTHING, _NO_CONTENT, None
        self._step = self._refuse_bytes
        return cookies

    def take(self) -> list[tuple[int, PendingRequest]]:
        """Return (cookie, request) of the requests answered since the last call, in order."""
        answered, self._answered = self._answered, []
        return answered

    # Bytes

    def get_buffer(self) -> memoryview:
        """Return the buffer for the next bytes: never empty, and valid until `buffer_updated`."""
        if self._landing is not None:
            return self._landing
        if not self._end and self._only_large_reads():
            return self._memory[: self._head_room]
        return self._memory[self._end :]

    def buffer_updated(self, size: int) -> None:
        """Parse *size* bytes, at least 1, at the beginning of the last `get_buffer`.

        :raises RemoteProtocolError: no conforming server can have sent them.
        """
        try:
            if self._landing is not None:
                self._land(self._landing, size)
            else:
                self._end += size
            while self._step():
                pass
        except RemoteProtocolError:
            self._step = self._refuse_bytes
            raise
        self._make_room()

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Parse bytes that were received elsewhere; they are copied.

        :raises RemoteProtocolError: no conforming server can have sent them.
        """
        rest = memoryview(data)
        while rest:
            buffer = self.get_buffer()
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            rest = rest[size:]
            self.buffer_updated(size)

    def _make_room(self) -> None:
        """Move the bytes that no step could use yet to the front of the buffer."""
        rest = self._end - self._start
        if self._start:
            self._memory[:rest] = bytes(self._memory[self._start : self._end])
            self._start, self._end = 0, rest

    def _refuse_bytes(self) -> bool:
        raise LocalProtocolError("this connection has ended")

    def _only_large_reads(self) -> bool:
        return self._large_reads == len(self._pending) > 0

    # Headers

    def _simple(self) -> bool:
        at = self._start
        if self._end - at < SIMPLE.size:
            return False
        magic, error, cookie = SIMPLE.unpack_from(self._memory, at)
        if magic != SIMPLE_REPLY_MAGIC:
            _refuse_magic(magic)
        self._start = at + SIMPLE.size
        request = self._answer_to(cookie)
        self._last = True
        if error:
            request.fail(error)
        elif request.command == Command.READ:
            # proto.md, "Structured reply chunk message": with structured replies a read is answered
            # by chunks, always. An error without data is accepted: it can't be misunderstood.
            if self._structured:
                raise RemoteProtocolError(f"the server sent a simple reply to {request}")
            self._begin_content(request.offset, request.length)
            return True
        elif is_private(request.command) and not self._structured:
            self._step = self._private_length
            return True
        self._end_chunk()
        return True

    def _simple_or_structured(self) -> bool:
        at = self._start
        if self._end - at < SIMPLE.size:
            return False
        (magic,) = _MAGIC.unpack_from(self._memory, at)
        if magic == SIMPLE_REPLY_MAGIC:
            return self._simple()
        if magic != STRUCTURED_REPLY_MAGIC:
            _refuse_magic(magic)
        if self._end - at < STRUCTURED.size:
            return False
        _, flags, kind, cookie, length = STRUCTURED.unpack_from(self._memory, at)
        self._start = at + STRUCTURED.size
        self._answer_to(cookie)
        self._begin_chunk(flags, kind, length)
        return True

    def _extended(self) -> bool:
        at = self._start
        if self._end - at < EXTENDED.size:
            return False
        magic, flags, kind, cookie, offset, length = EXTENDED.unpack_from(self._memory, at)
        if magic != EXTENDED_REPLY_MAGIC:
            _refuse_magic(magic)
        self._start = at + EXTENDED.size
        request = self._answer_to(cookie)
        if offset != request.offset:
            raise RemoteProtocolError(f"the server sent offset {offset} in reply to {request}")
        self._begin_chunk(flags, kind, length)
        return True

    def _answer_to(self, cookie: int) -> PendingRequest:
        request = self._pending.get(cookie)
        if request is None:
            raise RemoteProtocolError(
                f"the server answered {cookie:#x}, which is no request in flight"
            )
        self._cookie, self._request = cookie, request
        return request

    # Chunks

    def _begin_chunk(self, flags: int, kind: int, length: int) -> None:
        self._last = bool(flags & _DONE)
        self._left = length
        begin = self._begin_error if kind & CHUNK_ERROR_BIT else self._chunks.get(kind)
        if begin is None:
            raise RemoteProtocolError(
                f"the server sent {name_of(Chunk, kind)} in reply to {self._request}"
            )
        begin(kind)

    def _end_chunk(self) -> None:
        self._step = self._head
        if self._last:
            request = self._request
            request.finish()
            del self._pending[self._cookie]
            self._large_reads -= _is_large_read(request)
            self._answered.append((self._cookie, request))
        self._request = _NOTHING

    def _refuse_length(self, kind: int) -> NoReturn:
        raise RemoteProtocolError(
            f"the server sent {name_of(Chunk, kind)} with a payload of {self._left} bytes "
            f"in reply to {self._request}"
        )

    def _begin_none(self, kind: int) -> None:
        if self._left or not self._last:
            raise RemoteProtocolError(
                f"the server sent NONE with a payload, or not as the last chunk, "
                f"in reply to {self._request}"
            )
        self._end_chunk()

    # Content of reads

    def _begin_data(self, kind: int) -> None:
        if not 0 < self._left - _OFFSET.size <= self._request.length:
            self._refuse_length(kind)
        self._step = self._data_offset

    def _data_offset(self) -> bool:
        if self._end - self._start < _OFFSET.size:
            return False
        (offset,) = _OFFSET.unpack_from(self._memory, self._start)
        self._start += _OFFSET.size
        self._begin_content(offset, self._left - _OFFSET.size)
        return True

    def _begin_content(self, offset: int, length: int) -> None:
        self._content = self._request.place(offset, length)
        self._step = self._copy_content

    def _copy_content(self) -> bool:
        content, at = self._content, self._start
        size = min(len(content), self._end - at)
        content[:size] = self._memory[at : at + size]
        self._start = at + size
        self._content = content[size:]
        return self._content_came()

    def _land(self, landing: memoryview, size: int) -> None:
        self._content, self._landing = landing[size:], None
        self._content_came()

    def _content_came(self) -> bool:
        if not self._content:
            self._content = _NO_CONTENT
            self._end_chunk()
            return True
        self._step = self._copy_content
        if len(self._content) >= DIRECT or self._only_large_reads():
            self._landing = self._content
            self._step = _wait
        return False

    def _begin_hole(self, kind: int) -> None:
        if self._left != _HOLE.size:
            self._refuse_length(kind)
        self._step = self._hole

    def _hole(self) -> bool:
        if self._end - self._start < _HOLE.size:
            return False
        offset, length = _HOLE.unpack_from(self._memory, self._start)
        self._start += _HOLE.size
        self._request.place_hole(offset, length)
        self._end_chunk()
        return True

    # Block status

    def _begin_status(self, kind: int) -> None:
        count, rest = divmod(self._left - self._status_head.size, self._status.size)
        if rest or not 0 < count <= MAX_STATUS_EXTENTS:
            self._refuse_length(kind)
        self._step = self._status_opening

    def _status_opening(self) -> bool:
        head = self._status_head
        if self._end - self._start < head.size:
            return False
        self._context, *count = head.unpack_from(self._memory, self._start)
        self._start += head.size
        self._left -= head.size
        if count and count[0] * self._status.size != self._left:
            raise RemoteProtocolError(
                f"the server announced {count[0]} extents and sent {self._left} bytes "
                f"in reply to {self._request}"
            )
        self._request.open_status(self._context)
        self._step = self._extents
        return True

    def _extents(self) -> bool:
        at = self._start
        size = min(self._left, self._end - at)
        size -= size % self._status.size
        if not size:
            return False
        # A copy: an iterator that an error leaves unfinished keeps its buffer locked, and a locked
        # memoryview makes Python's garbage collector crash (3.11).
        extents = self._status.iter_unpack(bytes(self._memory[at : at + size]))
        self._request.add_extents(self._context, extents)
        self._start = at + size
        self._left -= size
        if not self._left:
            self._end_chunk()
        return True

    # Private commands

    def _private_length(self) -> bool:
        if self._end - self._start < _LENGTH.size:
            return False
        (self._left,) = _LENGTH.unpack_from(self._memory, self._start)
        self._start += _LENGTH.size
        self._begin_private(PRIVATE_CHUNK)
        return True

    def _begin_private(self, kind: int) -> None:
        if self._left > MAX_PRIVATE_PAYLOAD:
            raise RemoteProtocolError(
                f"the server sent a payload of {self._left} bytes in reply to {self._request}"
            )
        self._step = self._private

    def _private(self) -> bool:
        at, length = self._start, self._left
        if self._end - at < length:
            return False
        self._start = at + length
        self._request.tell(bytes(self._memory[at : at + length]))
        self._end_chunk()
        return True

    # Errors

    def _begin_error(self, kind: int) -> None:
        # All kinds of errors begin alike; of the further fields only ERROR_OFFSET's is used.
        self._has_offset = kind == Chunk.ERROR_OFFSET
        least = _ERROR.size + (_OFFSET.size if self._has_offset else 0)
        if not least <= self._left <= MAX_ERROR_PAYLOAD:
            self._refuse_length(kind)
        self._step = self._error

    def _error(self) -> bool:
        at, length = self._start, self._left
        if self._end - at < length:
            return False
        self._start = at + length
        number, size = _ERROR.unpack_from(self._memory, at)
        at += _ERROR.size
        room = length - _ERROR.size - (_OFFSET.size if self._has_offset else 0)
        if size > min(room, MAX_STRING):
            raise RemoteProtocolError(
                f"the server announced a message of {size} bytes in a payload of {length} "
                f"in reply to {self._request}"
            )
        message = str(self._memory[at : at + size], "utf-8", "replace")
        where = _OFFSET.unpack_from(self._memory, at + size)[0] if self._has_offset else None
        self._request.fail(number, message, where)
        self._end_chunk()
        return True


# Placeholders while there is no request, or no content.
_NOTHING = PendingRequest(Command.DISC)
_NO_CONTENT = memoryview(b"")


def _wait() -> bool:
    """Do nothing: the step while data arrives in the reader's buffer."""
    return False


def _is_large_read(request: PendingRequest) -> bool:
    return request.command == Command.READ and request.length >= DIRECT


def _refuse_magic(magic: int) -> NoReturn:
    raise RemoteProtocolError(f"the server sent the magic {magic:#010x}, which is not a reply's")
