"""What two sides of a negotiation agree on, and the events by which a negotiation tells it.

Values only, shared by both roles; what leads to them is in ``handshake`` and ``client_handshake``.
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
    TransmissionFlag,
)
from flexmigrate.wire.frames import encode_string

BlockSizes: TypeAlias = "tuple[int, int, int]"
"""Minimum block, preferred block and maximum payload, in bytes (proto.md, "Size constraints")."""

DEFAULT_BLOCK_SIZES: BlockSizes = (DEFAULT_MIN_BLOCK, DEFAULT_PREFERRED_BLOCK, MAX_PAYLOAD)


class TLSMode(Enum):
    """What a side thinks of TLS; the server's modes are NOTLS, SELECTIVETLS and FORCEDTLS."""

    OFF = "off"
    ON = "on"  # used if the other side wants it too
    REQUIRE = "require"  # no export is reached without it


@dataclass(frozen=True)
class ExportInfo:
    """One export, as it is described to clients; LocalProtocolError if it can't be.

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
    """Return what is wrong with *sizes*, or None.

    A preferred block below 512 bytes is let pass, against the specification's letter: it does no
    harm, and there are servers that advertise it.
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
    """How the two sides will talk in the transmission phase.

    :ivar export: the export; its flags are those that the client was told.
    :ivar structured: whether reads are answered by reply chunks; True also if *extended* is.
    :ivar extended: whether requests and replies have extended headers.
    :ivar contexts: (id, name) of each meta context that BLOCK_STATUS answers for.
    :ivar tls: whether the connection was encrypted before this was agreed on.
    :ivar private: (number, data) of each private option that was acknowledged: at the server the
        option's data, at the client that of the reply.
    """

    export: ExportInfo
    structured: bool = False
    extended: bool = False
    contexts: tuple[tuple[int, str], ...] = ()
    tls: bool = False
    private: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True)
class Send:
    """Write *data* to the peer."""

    data: bytes


@dataclass(frozen=True)
class StartTLS:
    """Once what was sent before has left, start TLS; then call ``tls_started()``."""


@dataclass(frozen=True)
class Ready:
    """The transmission phase begins; what came behind is in ``leftover``. The last event."""

    agreement: Agreement


@dataclass(frozen=True)
class Listed:
    """The server's exports, (name, description) each. A ``Close`` follows."""

    exports: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Told:
    """What the server answered to a private option that was all we wanted. A ``Close`` follows.

    :ivar data: of its reply.
    """

    data: bytes


class CloseKind(Enum):
    """Why a negotiation ended without a transmission phase."""

    ENDED = "ended"  # as it should: one side had all that it wanted
    REFUSED = "refused"  # both kept the rules, and one does not get what it insists on
    DECLINED = "declined"  # the server understands what we want, and says itself why it won't
    VIOLATION = "violation"  # the peer broke a rule, or went beyond a limit


@dataclass(frozen=True)
class Close:
    """Close the connection once what was sent before has left. The last event."""

    reason: str
    kind: CloseKind


Event: TypeAlias = "Send | StartTLS | Ready | Listed | Told | Close"
