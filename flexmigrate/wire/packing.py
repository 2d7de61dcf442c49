"""Messages as fields that are put together and taken apart: what is written is well formed, or
``LocalProtocolError`` is raised; what is read is hostile, and a field that doesn't fit raises
``RemoteProtocolError``, nothing else. What the fields mean is ``handover``'s affair.
"""

from __future__ import annotations

import struct
from struct import Struct
from typing import Any

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire.frames import display_text

VERSION = 2
"""Of all messages; the first field of each. 2 came with the keys of a session's attempts."""

ID_LENGTH = 16
"""Bytes of a session's id: drawn at random, so that no two are ever the same."""

MAX_TEXT = 1024
"""Bytes of UTF-8 in a name or a reason."""

VERSION_FIELD = Struct(">H")
_TEXT_LENGTH = Struct(">H")
_BLOB_LENGTH = Struct(">I")


def pack(layout: Struct, *values: int | bytes) -> bytes:
    """Return fields of fixed lengths; LocalProtocolError if a value has no place in its own."""
    try:
        return layout.pack(*values)
    except struct.error as error:
        raise LocalProtocolError(f"{values} can't be said in a session: {error}") from None


def checked_id(session: bytes) -> bytes:
    """Return *session*; LocalProtocolError if it is no id."""
    if len(session) != ID_LENGTH:
        raise LocalProtocolError(f"a session id of {len(session)} bytes (it has {ID_LENGTH})")
    return session


def text_field(text: str) -> bytes:
    """Return a text as a field; LocalProtocolError if it is too long, or can't be said."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise LocalProtocolError(f"{text!r} can't be written in UTF-8") from None
    if len(data) > MAX_TEXT or b"\0" in data:
        raise LocalProtocolError(f"a text of {len(data)} bytes (at most {MAX_TEXT}, none of 0)")
    return _TEXT_LENGTH.pack(len(data)) + data


def blob_field(data: bytes) -> bytes:
    """Return bytes of any length as a field."""
    return _BLOB_LENGTH.pack(len(data)) + data


class Fields:
    """Walks over the fields behind the version; the first that reaches past the end raises.

    :ivar version: of the message, from 1.
    """

    version: int

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        (self.version,) = self.take(VERSION_FIELD)
        if not self.version:
            raise RemoteProtocolError("a session message of version 0")

    def take(self, layout: Struct) -> tuple[Any, ...]:
        """Return the values of fields of fixed lengths."""
        return layout.unpack(self.raw(layout.size))

    def raw(self, length: int) -> bytes:
        """Return the next *length* bytes."""
        end = self._at + length
        if end > len(self._data):
            raise RemoteProtocolError(f"a field of {length} bytes that ends outside its message")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def string(self) -> str:
        """Return a string that has to be exact."""
        data = self._counted()
        if b"\0" in data:
            raise RemoteProtocolError("a text with a NUL character in it")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise RemoteProtocolError("a text that isn't UTF-8") from None

    def text(self) -> str:
        """Return a string that is for people: what could steer a terminal is replaced."""
        return display_text(self.string().encode())

    def blob(self, most: int) -> bytes:
        """Return a field of bytes, of which there are *most* at most."""
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
        """See that nothing is left, unless a higher version may have it."""
        if self.version <= VERSION and self._at != len(self._data):
            raise RemoteProtocolError(f"{len(self._data) - self._at} bytes behind a message")
