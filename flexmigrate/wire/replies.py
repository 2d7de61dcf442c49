"""Replies of the transmission phase, as a server writes them: three styles with one interface.

The style is chosen once, at the end of the negotiation. A content chunk whose data is read from the
disk while it is sent must not be marked as the last of its reply (proto.md, "Structured reply chunk
message"), since reading may fail. So such a read has an opening and a closing.

Specification: proto.md, "Simple reply message", "Structured reply chunk message", "Structured
reply types"; the extended style from the branch extension-ext-header.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from flexmigrate.wire.constants import (
    EXTENDED_REPLY_MAGIC,
    EXTENDED_REQUEST_MAGIC,
    MAX_STRING,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    ChunkFlag,
)
from flexmigrate.wire.handover import PRIVATE_CHUNK
from flexmigrate.wire.requests import EXTENDED_REQUEST, REQUEST

# magic, error, cookie
SIMPLE = Struct(">IIQ")
# magic, flags, type, cookie, length of payload
STRUCTURED = Struct(">IHHQI")
# magic, flags, type, cookie, offset of the request, length of payload
EXTENDED = Struct(">IHHQQQ")

# The headers above, followed by the offset that begins an OFFSET_DATA payload.
_STRUCTURED_DATA = Struct(">IHHQIQ")
_EXTENDED_DATA = Struct(">IHHQQQQ")
_LENGTH = Struct(">I")
_HOLE = Struct(">QI")
_ERROR = Struct(">IH")
_STATUS_HEAD = Struct(">I")
_STATUS = Struct(">II")
_STATUS_EXT_HEAD = Struct(">II")
_STATUS_EXT = Struct(">QQ")

_DONE = int(ChunkFlag.DONE)
_DATA = int(Chunk.OFFSET_DATA)

Descriptors = Sequence[tuple[int, int]]


def _error_payload(code: int, text: str) -> bytes:
    message = text.encode("utf-8", "replace")[:MAX_STRING]
    # If the cut splits a character, no part of it is sent.
    message = message.decode("utf-8", "ignore").encode()
    return _ERROR.pack(code, len(message)) + message


class ReplyStyle:
    """Simple replies, and the interface of the other two styles.

    :cvar request: the layout of requests in this style.
    :cvar request_magic: their magic number.
    :cvar data_prefix: the number of bytes before the data of a read.
    :cvar fragments: whether a read may be answered in several chunks, and with holes.
    """

    request: Struct = REQUEST
    request_magic: int = REQUEST_MAGIC
    data_prefix: int = SIMPLE.size
    extended: bool = False
    fragments: bool = False

    def pack_read(self, out: bytearray, at: int, cookie: int, offset: int, length: int) -> None:
        """Write the header of a read whose data is complete in memory to ``out[at:]``."""
        SIMPLE.pack_into(out, at, SIMPLE_REPLY_MAGIC, 0, cookie)

    def read_opening(self, cookie: int, request: int, offset: int, length: int) -> bytes:
        """Return the header of *length* bytes from *offset*, while reading them may still fail.

        :param request: the offset of the request that they answer, or answer a part of.
        """
        return SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, cookie)

    def read_closing(self, cookie: int, offset: int) -> bytes:
        """Return the end of a reply that consists of holes and of chunks begun by
        :meth:`read_opening`.
        """
        return b""

    def hole(self, cookie: int, request: int, offset: int, length: int) -> bytes:
        """Return a chunk for *length* bytes (below 2^32) of zeroes from *offset*. Not the last."""
        raise TypeError("simple replies have no holes")

    def ok(self, cookie: int, offset: int) -> bytes:
        """Return the reply to a request that succeeded, without a payload."""
        return SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, cookie)

    def error(self, cookie: int, offset: int, code: int, text: str) -> bytes:
        """Return the reply to a request that failed; *offset* is that of the request."""
        return SIMPLE.pack(SIMPLE_REPLY_MAGIC, code, cookie)

    def private(self, cookie: int, offset: int, payload: bytes) -> bytes:
        """Return the reply to a private command (``wire.handover``) that succeeded."""
        head = SIMPLE.pack(SIMPLE_REPLY_MAGIC, 0, cookie)
        return head + _LENGTH.pack(len(payload)) + payload

    def status(
        self, cookie: int, offset: int, context: int, descriptors: Descriptors, last: bool
    ) -> bytes:
        """Return the answer for one meta context: (length in bytes, flags) of consecutive
        extents.
        """
        raise TypeError("simple replies have no block status")


class StructuredReplies(ReplyStyle):
    """Chunks with a 20-byte header; plain success is a simple reply, which is shorter."""

    data_prefix = _STRUCTURED_DATA.size
    fragments = True

    def pack_read(self, out: bytearray, at: int, cookie: int, offset: int, length: int) -> None:
        _STRUCTURED_DATA.pack_into(
            out, at, STRUCTURED_REPLY_MAGIC, _DONE, _DATA, cookie, length + 8, offset
        )

    def read_opening(self, cookie: int, request: int, offset: int, length: int) -> bytes:
        return _STRUCTURED_DATA.pack(STRUCTURED_REPLY_MAGIC, 0, _DATA, cookie, length + 8, offset)

    def read_closing(self, cookie: int, offset: int) -> bytes:
        return STRUCTURED.pack(STRUCTURED_REPLY_MAGIC, _DONE, Chunk.NONE, cookie, 0)

    def hole(self, cookie: int, request: int, offset: int, length: int) -> bytes:
        head = STRUCTURED.pack(STRUCTURED_REPLY_MAGIC, 0, Chunk.OFFSET_HOLE, cookie, _HOLE.size)
        return head + _HOLE.pack(offset, length)

    def error(self, cookie: int, offset: int, code: int, text: str) -> bytes:
        payload = _error_payload(code, text)
        head = STRUCTURED.pack(STRUCTURED_REPLY_MAGIC, _DONE, Chunk.ERROR, cookie, len(payload))
        return head + payload

    def private(self, cookie: int, offset: int, payload: bytes) -> bytes:
        size = len(payload)
        return STRUCTURED.pack(STRUCTURED_REPLY_MAGIC, _DONE, PRIVATE_CHUNK, cookie, size) + payload

    def status(
        self, cookie: int, offset: int, context: int, descriptors: Descriptors, last: bool
    ) -> bytes:
        body = b"".join(_STATUS.pack(size, flags) for size, flags in descriptors)
        flags = _DONE if last else 0
        head = STRUCTURED.pack(
            STRUCTURED_REPLY_MAGIC, flags, Chunk.BLOCK_STATUS, cookie, 4 + len(body)
        )
        return head + _STATUS_HEAD.pack(context) + body


class ExtendedReplies(ReplyStyle):
    """Chunks with a 32-byte header, 64-bit lengths, and the request's offset repeated."""

    request = EXTENDED_REQUEST
    request_magic = EXTENDED_REQUEST_MAGIC
    data_prefix = _EXTENDED_DATA.size
    extended = True
    fragments = True

    def pack_read(self, out: bytearray, at: int, cookie: int, offset: int, length: int) -> None:
        _EXTENDED_DATA.pack_into(
            out, at, EXTENDED_REPLY_MAGIC, _DONE, _DATA, cookie, offset, length + 8, offset
        )

    def read_opening(self, cookie: int, request: int, offset: int, length: int) -> bytes:
        return _EXTENDED_DATA.pack(
            EXTENDED_REPLY_MAGIC, 0, _DATA, cookie, request, length + 8, offset
        )

    def read_closing(self, cookie: int, offset: int) -> bytes:
        return self.ok(cookie, offset)

    def hole(self, cookie: int, request: int, offset: int, length: int) -> bytes:
        head = self._head(0, Chunk.OFFSET_HOLE, cookie, request, _HOLE.size)
        return head + _HOLE.pack(offset, length)

    def ok(self, cookie: int, offset: int) -> bytes:
        return self._head(_DONE, Chunk.NONE, cookie, offset, 0)

    def error(self, cookie: int, offset: int, code: int, text: str) -> bytes:
        payload = _error_payload(code, text)
        return self._head(_DONE, Chunk.ERROR, cookie, offset, len(payload)) + payload

    def private(self, cookie: int, offset: int, payload: bytes) -> bytes:
        return self._head(_DONE, PRIVATE_CHUNK, cookie, offset, len(payload)) + payload

    def status(
        self, cookie: int, offset: int, context: int, descriptors: Descriptors, last: bool
    ) -> bytes:
        body = b"".join(_STATUS_EXT.pack(size, flags) for size, flags in descriptors)
        flags = _DONE if last else 0
        size = _STATUS_EXT_HEAD.size + len(body)
        head = self._head(flags, Chunk.BLOCK_STATUS_EXT, cookie, offset, size)
        return head + _STATUS_EXT_HEAD.pack(context, len(descriptors)) + body

    @staticmethod
    def _head(flags: int, kind: int, cookie: int, offset: int, length: int) -> bytes:
        return EXTENDED.pack(EXTENDED_REPLY_MAGIC, flags, kind, cookie, offset, length)


SIMPLE_REPLIES = ReplyStyle()
STRUCTURED_REPLIES = StructuredReplies()
EXTENDED_REPLIES = ExtendedReplies()


def reply_style(structured: bool, extended: bool) -> ReplyStyle:
    """Return the style for the options that were agreed on; *extended* takes precedence."""
    if extended:
        return EXTENDED_REPLIES
    return STRUCTURED_REPLIES if structured else SIMPLE_REPLIES
