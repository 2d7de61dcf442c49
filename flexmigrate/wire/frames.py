"""The frames of the handshake: their layouts, and functions to build and parse them.

The builders raise ``LocalProtocolError`` rather than make an invalid frame. The parsers take
hostile input: any field that doesn't fit raises ``RemoteProtocolError``, and nothing else. The
order of frames is the business of ``engine`` and the two handshakes.

Layouts: proto.md, "Handshake" and "Option reply types". All numbers are big-endian.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire.constants import (
    INIT_MAGIC,
    MAX_STRING,
    OLDSTYLE_MAGIC,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    Info,
    ServerRole,
)

U16 = Struct(">H")
U32 = Struct(">I")

HELLO = Struct(">QQ")
"""INIT_MAGIC, then the magic number of the style: the part that both greetings share."""

HANDSHAKE_FLAGS = U16
"""The flags that follow HELLO in the newstyle greeting."""

OLDSTYLE_REST = Struct(">QIII116x")
"""The rest of the oldstyle greeting, after HELLO: size in bytes, flags, then 124 reserved bytes. A
flexmigrate begins these with ROLE_MARK and its ServerRole; everybody else sends zeroes."""

ROLE_MARK = 0x666D6967  # ASCII "fmig"
"""Says that the number behind it is a ServerRole."""

CLIENT_FLAGS = U32

OPTION = Struct(">QII")
"""OPTION_MAGIC, option, length of its data in bytes."""

OPTION_REPLY = Struct(">QIII")
"""OPTION_REPLY_MAGIC, the option that it answers, reply type, length of its data in bytes."""

EXPORT = Struct(">QH")
"""The answer to EXPORT_NAME where zeroes were declined: size in bytes, transmission flags."""

EXPORT_PADDED = Struct(">QH124x")
"""The answer to EXPORT_NAME with its reserved zeroes."""

INFO_EXPORT = Struct(">HQH")
"""Info.EXPORT, size in bytes, transmission flags."""

INFO_BLOCK_SIZE = Struct(">HIII")
"""Info.BLOCK_SIZE; then minimum and preferred block, and maximum payload, in bytes."""


@dataclass(frozen=True)
class ExportRequest:
    """The data of INFO and GO: an export's name, and the numbers of the details asked for."""

    name: str
    infos: frozenset[int]


@dataclass(frozen=True)
class ContextRequest:
    """The data of LIST_META_CONTEXT and SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


# Strings


def encode_string(text: str) -> bytes:
    """Encode *text* as a string of the protocol; LocalProtocolError if it isn't allowed."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise LocalProtocolError(f"{text!r} can't be written in UTF-8") from None
    if len(data) > MAX_STRING:
        raise LocalProtocolError(f"a string of {len(data)} bytes (at most {MAX_STRING})")
    if 0 in data:
        raise LocalProtocolError(f"{text!r} has a NUL character in it")
    return data


def decode_string(data: bytes) -> str:
    """Decode a string from a peer; RemoteProtocolError if it isn't one (UTF-8, without NUL)."""
    if len(data) > MAX_STRING:
        raise RemoteProtocolError(f"a string of {len(data)} bytes (at most {MAX_STRING})")
    if 0 in data:
        raise RemoteProtocolError("a string with a NUL character in it")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RemoteProtocolError("a string that isn't UTF-8") from None


def display_text(data: bytes) -> str:
    """Decode a peer's message for display, cut to MAX_STRING bytes of UTF-8; never raises.

    Characters that could control a terminal or forge a line of a log are replaced.
    """
    text = data[:MAX_STRING].decode(errors="replace")
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown.encode()[:MAX_STRING].decode(errors="ignore")


# Greetings


def newstyle_greeting(flags: int) -> bytes:
    """Return the 18 bytes of a newstyle server's greeting; *flags*: HandshakeFlag."""
    return HELLO.pack(INIT_MAGIC, OPTION_MAGIC) + HANDSHAKE_FLAGS.pack(flags)


def oldstyle_greeting(size: int, flags: int, role: int = ServerRole.UNKNOWN) -> bytes:
    """Return the 152 bytes of a whole oldstyle negotiation; *flags*: TransmissionFlag."""
    mark = ROLE_MARK if role else 0
    return HELLO.pack(INIT_MAGIC, OLDSTYLE_MAGIC) + OLDSTYLE_REST.pack(size, flags, mark, role)


def parse_oldstyle(data: bytes) -> tuple[int, int, ServerRole]:
    """Return size, flags, and role from what follows HELLO in an oldstyle greeting."""
    size, flags, mark, role = OLDSTYLE_REST.unpack(data)
    is_told = mark == ROLE_MARK and role in set(ServerRole)
    return size, flags, ServerRole(role) if is_told else ServerRole.UNKNOWN


# Options, which the client sends


def option(number: int, data: bytes = b"") -> bytes:
    """Return a whole option."""
    return OPTION.pack(OPTION_MAGIC, number, len(data)) + data


def export_request(name: str, infos: Iterable[int] = ()) -> bytes:
    """Return the data of INFO or GO."""
    wanted = list(infos)
    numbers = b"".join(map(U16.pack, wanted))
    return _counted(encode_string(name)) + U16.pack(len(wanted)) + numbers


def context_request(name: str, queries: Iterable[str] = ()) -> bytes:
    """Return the data of LIST_META_CONTEXT or SET_META_CONTEXT."""
    counted = [_counted(encode_string(query)) for query in queries]
    return _counted(encode_string(name)) + U32.pack(len(counted)) + b"".join(counted)


def parse_export_request(data: bytes) -> ExportRequest:
    """Parse the data of INFO or GO; a detail that is asked for twice counts once."""
    fields = _Fields(data)
    name = fields.counted_string()
    infos = frozenset(fields.number(U16) for _ in range(fields.number(U16)))
    fields.end()
    return ExportRequest(name, infos)


def parse_context_request(data: bytes) -> ContextRequest:
    """Parse the data of LIST_META_CONTEXT or SET_META_CONTEXT."""
    fields = _Fields(data)
    name = fields.counted_string()
    queries = tuple(fields.counted_string() for _ in range(fields.number(U32)))
    fields.end()
    return ContextRequest(name, queries)


def parse_nothing(data: bytes) -> None:
    """Check that an option or a reply has no data."""
    if data:
        raise RemoteProtocolError(f"{len(data)} bytes of data where there should be none")


# Replies, which the server sends


def option_reply(number: int, reply: int, data: bytes = b"") -> bytes:
    """Return a whole reply of type *reply* to the option *number*."""
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, number, reply, len(data)) + data


def export_entry(name: str, description: str) -> bytes:
    """Return the data of a SERVER reply."""
    return _counted(encode_string(name)) + encode_string(description)


def context_entry(number: int, name: str) -> bytes:
    """Return the data of a META_CONTEXT reply."""
    return U32.pack(number) + encode_string(name)


def info_text(kind: Info, text: str) -> bytes:
    """Return the data of an INFO reply of the kind NAME or DESCRIPTION."""
    return U16.pack(kind) + encode_string(text)


def parse_export_entry(data: bytes) -> tuple[str, str]:
    """Return name and description (for display) from the data of a SERVER reply."""
    fields = _Fields(data)
    name = fields.counted_string()
    return name, display_text(fields.rest())


def parse_context_entry(data: bytes) -> tuple[int, str]:
    """Return id and name from the data of a META_CONTEXT reply."""
    fields = _Fields(data)
    number = fields.number(U32)
    return number, decode_string(fields.rest())


def parse_fixed(layout: Struct, data: bytes) -> tuple[int, ...]:
    """Return the numbers of a frame whose length is fixed."""
    if len(data) != layout.size:
        raise RemoteProtocolError(f"{len(data)} bytes of data where there should be {layout.size}")
    return layout.unpack(data)


def _counted(data: bytes) -> bytes:
    return U32.pack(len(data)) + data


class _Fields:
    """A walk over the fields of a frame; a field that reaches past the end raises."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, layout: Struct) -> int:
        (value,) = layout.unpack(self._take(layout.size))
        return int(value)

    def counted_string(self) -> str:
        return decode_string(self._take(self.number(U32)))

    def rest(self) -> bytes:
        return self._take(len(self._data) - self._at)

    def end(self) -> None:
        parse_nothing(self.rest())

    def _take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise RemoteProtocolError(f"a field of {length} bytes that ends outside its frame")
        taken = self._data[self._at : end]
        self._at = end
        return taken
