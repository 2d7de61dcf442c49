"""Requests of the transmission phase: their two layouts, and the rules for accepting them.

A request is checked completely, here, before anything is done for it; an accepted one is carried
out without further checks.

Specification: proto.md, "Request message", "Request types", "Error values"; the extended layout
from the branch extension-ext-header. Both layouts have the same six fields in the same order.
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

# A longer payload than we accept is read and discarded, so that the client gets its error and the
# connection survives. Beyond this length that isn't worth it, and the connection is closed.
MAX_DRAIN = 2 * MAX_REQUEST

# A command without payload whose effect is longer than this is refused with EINVAL. It is the
# longest that the compact layout can express, and bounds the work of one request.
MAX_EFFECT = 2**32 - 1

# Bytes of a BLOCK_STATUS payload: 8 for the effect length, then 4 for each context id. No
# connection can agree on more contexts than this has room for.
MAX_STATUS_PAYLOAD = 8 + 4 * 64


@dataclass(frozen=True)
class Terms:
    """The terms of a connection by which its requests are judged.

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
    """The answer to a refused request: *code* for any client, *text* for people."""

    code: ErrorCode
    text: str


@dataclass(frozen=True)
class CommandRule:
    """The specification's rules for one command.

    :ivar allowed: the command flags that it may have, except for FUA, which every command accepts
        (proto.md, "Command flags") though it has an effect only on those that write.
    :ivar needs: the transmission flag that must have been advertised; 0 for none.
    :ivar changes: whether it changes the export, and so is refused on a read-only one.
    :ivar beyond: the error for a range that ends after the export's end; None: it has no range.
    """

    allowed: CommandFlag
    needs: TransmissionFlag
    changes: bool
    beyond: ErrorCode | None


_NO_FLAGS = CommandFlag(0)
_ALWAYS = TransmissionFlag(0)

# Plain numbers, since every request is judged: an operation on an IntFlag takes ten times as long.
# They are also safer: ~ of an IntFlag leaves out the bits that have no name (Python 3.11).
_FUA = int(CommandFlag.FUA)
_PAYLOAD_LEN = int(CommandFlag.PAYLOAD_LEN)
_READ_ONLY = int(TransmissionFlag.READ_ONLY)
_STATUS_PAYLOAD = int(TransmissionFlag.BLOCK_STATUS_PAYLOAD)

RULES: dict[int, CommandRule] = {
    Command.READ: CommandRule(CommandFlag.DF, _ALWAYS, False, ErrorCode.EINVAL),
    Command.WRITE: CommandRule(_NO_FLAGS, _ALWAYS, True, ErrorCode.ENOSPC),
    Command.FLUSH: CommandRule(_NO_FLAGS, TransmissionFlag.SEND_FLUSH, False, None),
    Command.TRIM: CommandRule(_NO_FLAGS, TransmissionFlag.SEND_TRIM, True, ErrorCode.EINVAL),
    Command.CACHE: CommandRule(_NO_FLAGS, TransmissionFlag.SEND_CACHE, False, ErrorCode.EINVAL),
    Command.WRITE_ZEROES: CommandRule(
        CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO,
        TransmissionFlag.SEND_WRITE_ZEROES,
        True,
        ErrorCode.ENOSPC,
    ),
    Command.BLOCK_STATUS: CommandRule(CommandFlag.REQ_ONE, _ALWAYS, False, ErrorCode.EINVAL),
}

# Flags that a client may send only if the server advertised them: proto.md, "Transmission flags".
_ADVERTISED_BY = {
    int(CommandFlag.FUA): int(TransmissionFlag.SEND_FUA),
    int(CommandFlag.DF): int(TransmissionFlag.SEND_DF),
    int(CommandFlag.FAST_ZERO): int(TransmissionFlag.SEND_FAST_ZERO),
}


def pack_request(
    extended: bool, flags: int, command: int, cookie: int, offset: int, length: int
) -> bytes:
    """Return a request's header; *offset* and *length* in bytes.

    With extended headers the caller sets PAYLOAD_LEN if *length* is that of a payload.
    """
    if extended:
        return EXTENDED_REQUEST.pack(EXTENDED_REQUEST_MAGIC, flags, command, cookie, offset, length)
    return REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)


def payload_length(extended: bool, flags: int, command: int, length: int) -> int:
    """Return the number of bytes that follow the header, whether or not the request is valid."""
    if extended:
        return length if flags & CommandFlag.PAYLOAD_LEN else 0
    return length if command == Command.WRITE else 0


def refuse(command: int, flags: int, offset: int, length: int, terms: Terms) -> Refusal | None:
    """Return the reason to refuse a request, or None if it may be carried out as it is.

    *offset* and *length* (of the effect on the export, in bytes) may be anything that the layout
    can hold: Python's integers don't overflow. DISC isn't judged: it has no answer.
    """
    rule = RULES.get(command)
    if rule is None:
        return _invalid(f"{name_of(Command, command)} is not a command of this server")
    flags, told = int(flags), int(terms.flags)
    if rule.changes and told & _READ_ONLY:
        # First: a read-only export doesn't advertise most of these commands.
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
    rule: CommandRule, command: int, flags: int, told: int, extended: bool
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
    rule: CommandRule, command: int, offset: int, length: int, terms: Terms
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
