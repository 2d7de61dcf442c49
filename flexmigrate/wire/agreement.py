"""Values shared by both sides of a negotiation: its events, and the agreement that it ends with.

``handshake`` and ``client_handshake`` produce them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from flexmigrate.errors import LocalProtocolError
from flexmigrate.wire.constants import (
    BASE_ALLOCATION,
    DEFAULT_MIN_BLOCK,
    DEFAULT_PREFERRED_BLOCK,
    MAX_EXPORT_SIZE,
    MAX_MIN_BLOCK,
    MAX_PAYLOAD,
    ServerRole,
    TransmissionFlag,
)
from flexmigrate.wire.frames import encode_string

BlockSizes: TypeAlias = "tuple[int, int, int]"
"""Minimum block, preferred block and maximum payload, in bytes (proto.md, "Size constraints")."""

DEFAULT_BLOCK_SIZES: BlockSizes = (DEFAULT_MIN_BLOCK, DEFAULT_PREFERRED_BLOCK, MAX_PAYLOAD)


class TLSMode(Enum):
    """The use of TLS by a side; the server's modes are NOTLS, SELECTIVETLS and FORCEDTLS."""

    OFF = "off"
    ON = "on"  # used if the other side wants it too
    REQUIRE = "require"  # no export is reached without it


@dataclass(frozen=True)
class ExportInfo:
    """Describe one export to clients; raise LocalProtocolError for values that the protocol
    forbids.

    :ivar name: its canonical name.
    :ivar size: in bytes, 0 to 2^63 - 1.
    :ivar flags: in a server's directory, what the export can do; in an agreement, what the client
        was told. SEND_DF is never given by a directory: the negotiation adds it.
    :ivar description: for human beings; may be empty.
    :ivar block_sizes: minimum, preferred and maximum, in bytes.
    :ivar contexts: the meta contexts that a client may select. Empty at a client.
    """

    name: str
    size: int
    flags: TransmissionFlag
    description: str = ""
    block_sizes: BlockSizes = DEFAULT_BLOCK_SIZES
    contexts: tuple[str, ...] = (BASE_ALLOCATION,)

    def __post_init__(self) -> None:
        fault = block_size_fault(self.block_sizes)
        if fault is not None:
            raise LocalProtocolError(fault)
        if not 0 <= self.size <= MAX_EXPORT_SIZE:
            raise LocalProtocolError(f"an export of {self.size} bytes")
        for text in (self.name, self.description, *self.contexts):
            encode_string(text)


def block_size_fault(sizes: BlockSizes) -> str | None:
    """Return a sentence on the fault of *sizes*, or None if they are valid.

    A preferred block below 512 bytes is accepted, although the specification forbids it: it does
    no harm, and there are servers that advertise it.
    """
    minimum, preferred, maximum = sizes
    if not (_is_power_of_2(minimum) and minimum <= MAX_MIN_BLOCK):
        return f"a minimum block size of {minimum} bytes"
    if not (_is_power_of_2(preferred) and preferred >= minimum):
        return f"a preferred block size of {preferred} bytes (the minimum being {minimum})"
    if not preferred <= maximum < 1 << 32:
        return f"a maximum payload of {maximum} bytes (blocks being {preferred})"
    return None


def _is_power_of_2(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@dataclass(frozen=True)
class Agreement:
    """The terms of the transmission phase.

    :ivar export: the export; its flags are those that the client was told.
    :ivar structured: whether reads are answered by reply chunks; True also if *extended* is.
    :ivar extended: whether requests and replies have extended headers.
    :ivar contexts: (id, name) of each meta context that BLOCK_STATUS answers for.
    :ivar tls: whether the connection was encrypted before this was agreed on.
    :ivar oldstyle: whether the handshake was the oldstyle one.
    :ivar role: what the server has said of itself in the oldstyle greeting.
    :ivar private: (number, data) of each private option that was acknowledged: at the server the
        option's data, at the client that of the reply.
    """

    export: ExportInfo
    structured: bool = False
    extended: bool = False
    contexts: tuple[tuple[int, str], ...] = ()
    tls: bool = False
    private: tuple[tuple[int, bytes], ...] = ()
    oldstyle: bool = False
    role: ServerRole = ServerRole.UNKNOWN


@dataclass(frozen=True)
class Send:
    """Write *data* to the peer."""

    data: bytes


@dataclass(frozen=True)
class StartTLS:
    """Start TLS once everything sent before has left; then call ``tls_started()``."""


@dataclass(frozen=True)
class Ready:
    """Begin the transmission phase. The last event; later bytes are in ``leftover``."""

    agreement: Agreement


@dataclass(frozen=True)
class Listed:
    """The server's exports, as (name, description) pairs. A ``Close`` follows."""

    exports: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PrivateReply:
    """The server's reply to a private option, where nothing else was wanted. A ``Close`` follows.

    :ivar data: the data of the reply.
    """

    data: bytes


class CloseKind(Enum):
    """The reason that a negotiation ended without a transmission phase."""

    ENDED = "ended"  # in good order: one side had all that it wanted
    REFUSED = "refused"  # both kept the rules, but one insists on something that the other refuses
    DECLINED = "declined"  # the server understood the request, and gave its reason to refuse it
    VIOLATION = "violation"  # the peer broke a rule, or exceeded a limit


@dataclass(frozen=True)
class Close:
    """Close the connection once everything sent before has left. The last event."""

    reason: str
    kind: CloseKind


Event: TypeAlias = "Send | StartTLS | Ready | Listed | PrivateReply | Close"
