"""Fields of flexmigrate's own messages: functions to build them, and a parser.

The builders raise ``LocalProtocolError`` rather than make an invalid field. The parser takes
hostile input: a field that doesn't fit raises ``RemoteProtocolError``, and nothing else.
``handover`` gives the fields their meaning.
"""

from __future__ import annotations

import struct
from struct import Struct
from typing import Any

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire.frames import display_text

VERSION = 2
"""The version of all messages, their first field. Version 2 added the keys of attempts."""

ID_LENGTH = 16
"""Bytes of a session's id, which is random, so that no two are the same."""

MAX_TEXT = 1024
"""Bytes of UTF-8 in a name or a reason."""

VERSION_FIELD = Struct(">H")
_TEXT_LENGTH = Struct(">H")
_BLOB_LENGTH = Struct(">I")


def pack(layout: Struct, *values: int | bytes) -> bytes:
    """Build fields of fixed lengths; LocalProtocolError if a value doesn't fit its field."""
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise LocalProtocolError(
            f"{values} don't fit their fields in a session message: {error}"
        ) from None


def checked_id(session: bytes) -> bytes:
    """Return *session*; LocalProtocolError unless it has the length of an id."""
    if len(session) != ID_LENGTH:
        raise LocalProtocolError(f"a session id of {len(session)} bytes (it has {ID_LENGTH})")
    return session


def text_field(text: str) -> bytes:
    """Build a text field; LocalProtocolError if the text is too long or not allowed."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise LocalProtocolError(f"{text!r} can't be written in UTF-8") from None
    if len(data) > MAX_TEXT or b"\0" in data:
        raise LocalProtocolError(f"a text of {len(data)} bytes (at most {MAX_TEXT}, none of 0)")
    return _TEXT_LENGTH.pack(len(data)) + data


def blob_field(data: bytes) -> bytes:
    """Build a field of any number of bytes."""
    return _BLOB_LENGTH.pack(len(data)) + data


class Fields:
    """A parser that walks over the fields of a message; a field that reaches past the end raises.

    :ivar version: the message's version, from 1.
    """

    version: int

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        (self.version,) = self.take(VERSION_FIELD)
        if not self.version:
            raise RemoteProtocolError("a session message of version 0")

    def take(self, layout: Struct) -> tuple[Any, ...]:
        """Parse fields of fixed lengths, and return their values."""
        return layout.unpack(self.raw(layout.size))

    def raw(self, length: int) -> bytes:
        """Return the next *length* bytes as they are."""
        end = self._at + length
        if end > len(self._data):
            raise RemoteProtocolError(f"a field of {length} bytes that ends outside its message")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def string(self) -> str:
        """Parse a text that is used as an identifier: it is returned unchanged."""
        data = self._counted()
        if b"\0" in data:
            raise RemoteProtocolError("a text with a NUL character in it")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise RemoteProtocolError("a text that isn't UTF-8") from None

    def text(self) -> str:
        """Parse a text for display: characters that could control a terminal are replaced."""
        return display_text(self.string().encode())

    def blob(self, most: int) -> bytes:
        """Parse a field of at most *most* bytes."""
        (length,) = _BLOB_LENGTH.unpack(self.raw(_BLOB_LENGTH.size))
        if length > most:
            raise RemoteProtocolError(f"a field of {length} bytes (at most {most})")
        return self.raw(length)

    def _counted(self) -> bytes:
        (length,) = _TEXT_LENGTH.unpack(self.raw(_TEXT_LENGTH.size))
        if length > MAX_TEXT:
            raise RemoteProtocolError(f"a text of {length} bytes (at most {MAX_TEXT})")
        return self.raw(length)

    def end(self) -> None:
        """Check that nothing is left, unless the message has a higher version."""
        if self.version <= VERSION and self._at != len(self._data):
            raise RemoteProtocolError(
                f"{len(self._data) - self._at} bytes after the end of a message"
            )
