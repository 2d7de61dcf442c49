"""Requests of the transmission phase: their two layouts, and what makes one acceptable.

The law of this file: a request is judged wholly, here, before anything is done for it; what
passes is carried out without further checks. Nothing is read or written here.

Specification: proto.md, "Request message", "Request types", "Error values"; the extended layout
from the branch extension-ext-header, which gives both layouts the same six fields in the same
order.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from flexmigrate.wire.constants import (
    EXTENDED_REQUEST_MAGIC,
    MAX_REQUEST,
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    ErrorCode,
    TransmissionFlag,
    name_of,
)

# magic, command flags, type, cookie, offset, length
REQUEST = Struct(">IHHQQI")
EXTENDED_REQUEST = Struct(">IHHQQQ")

# A payload longer than what we take is read and thrown away, so that the client gets its error and
# the connection lives; past this it isn't worth the network's time, and the connection is closed.
MAX_DRAIN = 2 * MAX_REQUEST

# A command without payload, and with an effect longer than this, is refused with EINVAL: the
# largest that the compact layout can ask for. It keeps one request's work bounded.
MAX_EFFECT = 2**32 - 1

# Ids in one BLOCK_STATUS payload (8 bytes of effect length, then 4 a context id): more than the
# contexts that one connection can agree on is nonsense.
MAX_STATUS_PAYLOAD = 8 + 4 * 64


@dataclass(frozen=True)
class Terms:
    """What one connection agreed on, as far as requests are judged by it.

    :ivar size: of the export, in bytes.
    :ivar flags: the transmission flags that the client was told.
    :ivar extended: whether requests have the extended layout.
    :ivar context_ids: the meta contexts that BLOCK_STATUS answers for; empty: the command is
        refused.
    """

    size: int
    flags: TransmissionFlag
    extended: bool = False
    context_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """The answer to a request that isn't carried out: *code* for any client, *text* for a human."""

    code: ErrorCode
    text: str


@dataclass(frozen=True)
class Rule:
    """What the specification says of one command.

    :ivar allowed: the command flags that it may carry, beside FUA: that must be accepted with all
        of them (proto.md, "Command flags"), and means something only where a command writes.
    :ivar needs: the transmission flag that advertises it; 0 where none has to.
    :ivar changes: whether it alters the export, and so is refused on a read-only one.
    :ivar beyond: the error for a range that ends after the export's end; None: it has no range.
    """

    allowed: CommandFlag
    needs: TransmissionFlag
    changes: bool
    beyond: ErrorCode | None


_NO_FLAGS = CommandFlag(0)
_ALWAYS = TransmissionFlag(0)

# Plain numbers, for requests are judged often: an operation on an IntFlag takes as long as ten.
# They are also safer, as ~ of an IntFlag leaves out the bits that have no name (Python 3.11).
_FUA = int(CommandFlag.FUA)
_PAYLOAD_LEN = int(CommandFlag.PAYLOAD_LEN)
_READ_ONLY = int(TransmissionFlag.READ_ONLY)
_STATUS_PAYLOAD = int(TransmissionFlag.BLOCK_STATUS_PAYLOAD)

RULES: dict[int, Rule] = {
    Command.READ: Rule(CommandFlag.DF, _ALWAYS, False, ErrorCode.EINVAL),
    Command.WRITE: Rule(_NO_FLAGS, _ALWAYS, True, ErrorCode.ENOSPC),
    Command.FLUSH: Rule(_NO_FLAGS, TransmissionFlag.SEND_FLUSH, False, None),
    Command.TRIM: Rule(_NO_FLAGS, TransmissionFlag.SEND_TRIM, True, ErrorCode.EINVAL),
    Command.CACHE: Rule(_NO_FLAGS, TransmissionFlag.SEND_CACHE, False, ErrorCode.EINVAL),
    Command.WRITE_ZEROES: Rule(
        CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
        TransmissionFlag.SEND_WRITE_ZEROES,
        True,
        ErrorCode.ENOSPC,
    ),
    Command.BLOCK_STATUS: Rule(CommandFlag.REQ_ONE, _ALWAYS, False, ErrorCode.EINVAL),
}

# Flags that a client may only send where the server said so: proto.md, "Transmission flags".
_ADVERTISED_BY = {
    int(CommandFlag.FUA): int(TransmissionFlag.SEND_FUA),
    int(CommandFlag.DF): int(TransmissionFlag.SEND_DF),
    int(CommandFlag.FAST_ZERO): int(TransmissionFlag.SEND_FAST_ZERO),
}


def pack_request(
    extended: bool, flags: int, command: int, cookie: int, offset: int, length: int
) -> bytes:
    """Return a request's header; *offset* and *length* in bytes.

    Under extended headers the caller sets PAYLOAD_LEN where *length* is that of a payload.
    """
    if extended:
        return EXTENDED_REQUEST.pack(EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)
    return REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)


def payload_length(extended: bool, flags: int, command: int, length: int) -> int:
    """Return how many bytes follow the header, whether or not the request is acceptable."""
    if extended:
        return length if flags & CommandFlag.PAYLOAD_LEN else 0
    return length if command == Command.WRITE else 0


def refuse(command: int, flags: int, offset: int, length: int, terms: Terms) -> Refusal | None:
    """Judge a request; return why it is refused, or None where it may be carried out as it stands.

    *offset* and *length* (of the effect on the export, in bytes) may be anything that the layout
    can hold: Python's integers don't wrap. DISC isn't judged here: it has no answer.
    """
    rule = RULES.get(command)
    if rule is None:
        return _invalid(f"{name_of(Command, command)} is not a command of this server")
    flags, told = int(flags), int(terms.flags)
    if rule.changes and told & _READ_ONLY:
        # Before all else: such an export doesn't advertise most of these commands.
        return Refusal(ErrorCode.EPERM, "the export is read-only")
    if int(rule.needs) & ~told:
        return _invalid(f"{name_of(Command, command)} was not advertised")
    return (
        _refuse_flags(rule, command, flags, told, terms.extended)
        or _refuse_context(command, terms)
        or _refuse_range(rule, command, offset, length, terms)
    )


def _invalid(text: str) -> Refusal:
    return Refusal(ErrorCode.EINVAL, text)


def _refuse_flags(
    rule: Rule, command: int, flags: int, told: int, extended: bool
) -> Refusal | None:
    if extended:
        refusal = _refuse_payload_flag(command, flags, told)
        if refusal is not None:
            return refusal
        flags &= ~_PAYLOAD_LEN
    if not flags:
        return None
    if flags & ~(int(rule.allowed) | _FUA):
        return _invalid(f"{name_of(Command, command)} does not take the flags {flags:#06x}")
    for flag, advertised_by in _ADVERTISED_BY.items():
        if flags & flag and not told & advertised_by:
            return _invalid(f"the flag {name_of(CommandFlag, flag)} was not advertised")
    return None


def _refuse_payload_flag(command: int, flags: int, told: int) -> Refusal | None:
    carried = bool(flags & _PAYLOAD_LEN)
    if command == Command.WRITE:
        return None if carried else _invalid("WRITE without PAYLOAD_LEN under extended headers")
    if not carried:
        return None
    if command == Command.BLOCK_STATUS and told & _STATUS_PAYLOAD:
        return None
    return _invalid(f"{name_of(Command, command)} takes no payload")


def _refuse_context(command: int, terms: Terms) -> Refusal | None:
    if command == Command.BLOCK_STATUS and not terms.context_ids:
        return _invalid("BLOCK_STATUS without a negotiated meta context")
    return None


def _refuse_range(
    rule: Rule, command: int, offset: int, length: int, terms: Terms
) -> Refusal | None:
    if rule.beyond is None:
        return _invalid("FLUSH has neither offset nor length") if offset or length else None
    if command in (Command.READ, Command.WRITE) and length > MAX_REQUEST:
        return _invalid(f"{length} bytes in one request; the largest is {MAX_REQUEST}")
    if offset + length > terms.size:
        return Refusal(
            rule.beyond,
            f"{name_of(Command, command)} of {length} bytes at {offset} ends after the export's "
            f"{terms.size} bytes",
        )
    if length > MAX_EFFECT:
        return _invalid(f"{length} bytes in one request; the largest effect is {MAX_EFFECT}")
    if length == 0 and command == Command.BLOCK_STATUS:
        return _invalid("BLOCK_STATUS of no bytes")
    return None
