"""What a server tells about itself: the one source of the fields, their units and their meaning.

The control socket, the log and the documentation all use the frozen `Status`. It is a value: who
fills it in, and when, is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

ListeningPhase = Literal["waiting", "receiving", "complete", "rebinding", "serving", "failed"]

_Value = bool | int | str


def _about(doc: str, unit: str = "") -> dict[str, str]:
    return {"doc": doc, "unit": unit}


@dataclass(frozen=True)
class Status:
    """A server at one moment. A field that is ``None`` does not apply now, and is not told.

    Each field's metadata has ``doc``, its meaning, and ``unit``, empty where it has none.
    """

    pid: int = field(metadata=_about("process id of the server"))
    size: int = field(metadata=_about("size of the image as it is served", "bytes"))
    has_control: bool = field(
        metadata=_about(
            "whether this server owns the image: false while it waits for or receives a migration"
        )
    )
    clients_allowed: bool = field(metadata=_about("whether new clients are let in"))
    num_clients: int = field(metadata=_about("clients that are connected", "connections"))
    is_mirroring: bool = field(metadata=_about("whether a migration away from here is running"))

    export: str | None = field(
        default=None, metadata=_about("name of the export that this is about, if it has one")
    )
    num_exports: int | None = field(
        default=None, metadata=_about("exports of this server", "exports")
    )

    migration_duration: int | None = field(
        default=None, metadata=_about("time since the migration was asked for", "seconds")
    )
    migration_speed: int | None = field(
        default=None, metadata=_about("what is being sent", "bytes/second")
    )
    migration_speed_limit: int | None = field(
        default=None, metadata=_about("the limit, if there is one", "bytes/second")
    )
    migration_seconds_left: int | None = field(
        default=None, metadata=_about("estimated time to the end", "seconds")
    )
    migration_bytes_left: int | None = field(
        default=None, metadata=_about("what is known to be still unsent", "bytes")
    )
    migration_phase: str | None = field(default=None, metadata=_about("name of the source's state"))
    migration_pass: int | None = field(
        default=None, metadata=_about("walk over what has to be sent, from 1 in each attempt")
    )
    migration_attempt: int | None = field(
        default=None, metadata=_about("connection to the destination, from 1")
    )
    migration_error: str | None = field(
        default=None, metadata=_about("why the attempt before this one failed")
    )
    migration_bytes_sent: int | None = field(
        default=None, metadata=_about("what all attempts have sent so far", "bytes")
    )
    last_migration: str | None = field(
        default=None, metadata=_about("how the migration before ended")
    )

    listening_phase: ListeningPhase | None = field(
        default=None, metadata=_about("name of the destination's state")
    )
    covered_bytes: int | None = field(
        default=None,
        metadata=_about("what the sender has written, zeroed or trimmed in this attempt", "bytes"),
    )
    rebind_attempts: int | None = field(
        default=None, metadata=_about("how often the serving address could not be opened")
    )
    rebind_error: str | None = field(
        default=None, metadata=_about("why it could not be opened last")
    )
    rebind_seconds: int | None = field(
        default=None, metadata=_about("time since it was first tried", "seconds")
    )


def format_status(status: Status) -> str:
    """Return *status* as ``key=value`` pairs with one space between them, in one line.

    Keys stand in the order of the fields. Booleans are ``true`` and ``false``. In texts, spaces,
    ``%`` and everything that is not printable are percent-encoded as UTF-8 (RFC 3986, 2.1), so that
    a value never holds a space or the end of a line.
    """
    values = ((each.name, getattr(status, each.name)) for each in fields(Status))
    return " ".join(f"{name}={_encode(value)}" for name, value in values if value is not None)


def parse_status(text: str) -> dict[str, str]:
    """Return the pairs of a line that `format_status`, or flexnbd, has made; values are decoded.

    :raises ValueError: naming what is not a pair.
    """
    pairs = {}
    for item in text.split():
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise ValueError(f"{item!r} is not a key=value pair")
        pairs[key] = _unquote(value)
    return pairs


def _encode(value: _Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quote(str(value))


def _quote(text: str) -> str:
    return "".join(
        char if char.isprintable() and char not in " %" else _percent(char) for char in text
    )


def _percent(char: str) -> str:
    # Names of files may hold bytes that are no UTF-8, and the answer must not fail for them.
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def _unquote(text: str) -> str:
    """Decode by hand: importing urllib.parse would cost every command a few milliseconds."""
    literal, *coded = text.split("%")
    decoded = bytearray(literal, "utf-8", "surrogatepass")
    for piece in coded:
        try:
            (byte,) = bytes.fromhex(piece[:2])
        except ValueError:
            raise ValueError(f"{text!r} has a % without two hexadecimal digits") from None
        decoded.append(byte)
        decoded += piece[2:].encode("utf-8", "surrogatepass")
    return decoded.decode("utf-8", "surrogatepass")
