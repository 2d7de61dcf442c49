"""The server's side of the negotiation: the options it knows, and its answers to them.

A table at the end lists every known option with its parser and its action; ``haggling`` applies it.
An option is answered, refused with the error that the specification has for it, or ends the
connection; it never changes an export. Opening an export's image, TLS itself, and the time limit
belong to the caller.

Specification: proto.md, "Handshake", "TLS support", "Option types"; EXTENDED_HEADERS from the
branch extension-ext-header.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol, TypeAlias

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire import frames, meta_contexts
from flexmigrate.wire.agreement import (
    Agreement,
    Close,
    CloseKind,
    Event,
    ExportInfo,
    Ready,
    Send,
    StartTLS,
    TLSMode,
)
from flexmigrate.wire.constants import (
    MAX_QUERIES,
    OPTION_ERROR_BIT,
    SECTOR,
    Info,
    Option,
    OptionReply,
    ServerRole,
    TransmissionFlag,
    name_of,
)
from flexmigrate.wire.engine import Phase
from flexmigrate.wire.frames import ContextRequest, ExportRequest
from flexmigrate.wire.haggling import ACK, Haggling, OptionRule

__all__ = [
    "Agreement",
    "Close",
    "CloseKind",
    "Directory",
    "Event",
    "ExportInfo",
    "Gate",
    "HandshakeStyle",
    "PrivateOption",
    "Ready",
    "RefusingHandshake",
    "Send",
    "ServerHandshake",
    "StartTLS",
    "TLSMode",
]

PrivateOption: TypeAlias = Callable[[bytes], "Sequence[tuple[int, bytes]]"]
"""Handles a private option: takes its data and returns the replies as (type, data) pairs, the last
of them ACK or an error. Raises RemoteProtocolError for invalid data."""

Gate: TypeAlias = Callable[[str, Mapping[int, bytes]], "str | None"]
"""Decides whether a client may use an export: takes the export's canonical name and the data of the
private options that were acknowledged; returns the reason to refuse, or None."""


class HandshakeStyle(Enum):
    """The greeting of a port. The server speaks first, so one port has one style."""

    FIXED_NEWSTYLE = "fixed newstyle"
    OLDSTYLE = "oldstyle"


class Directory(Protocol):
    """The exports that a client may see."""

    def find(self, name: str) -> ExportInfo | None:
        """Return the export called *name*, or None."""
        ...

    def names(self) -> Iterable[tuple[str, str]]:
        """Return name and description of each export."""
        ...

    def listable(self) -> bool:
        """Return whether clients may list the exports."""
        ...


@dataclass
class _Terms:
    """The options that a client has asked for so far; STARTTLS resets them."""

    structured: bool = False
    extended: bool = False
    # The meta contexts are selected for one export's name, as the client wrote it.
    contexts_of: str = ""
    contexts: tuple[tuple[int, str], ...] = ()
    private: dict[int, bytes] = field(default_factory=dict)

    def contexts_for(self, name: str) -> tuple[tuple[int, str], ...]:
        return self.contexts if self.contexts_of == name else ()


class ServerHandshake(Haggling):
    """The negotiation of a server with one client.

    :param default_export: the export of a client that gives no name.
    :param private_options: handlers of private options, by number; LocalProtocolError if the
        specification has one of the numbers already.
    :param gate: decides which clients may use which export; None: all of them.
    :param role: what the server says of itself in the oldstyle greeting.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        style: HandshakeStyle = HandshakeStyle.FIXED_NEWSTYLE,
        tls: TLSMode = TLSMode.OFF,
        default_export: str = "",
        private_options: Mapping[int, PrivateOption] | None = None,
        gate: Gate | None = None,
        role: ServerRole = ServerRole.UNKNOWN,
    ) -> None:
        if style is HandshakeStyle.OLDSTYLE and tls is TLSMode.REQUIRE:
            raise LocalProtocolError("the oldstyle handshake can't require TLS: it has none")
        super().__init__({**_RULES, **_private_rules(private_options or {})}, tls)
        self._directory = directory
        self._style = style
        self._default_export = default_export
        self._gate = gate
        self._role = role
        self._terms = _Terms()

    def greeting(self) -> list[Event]:
        """Return the events that begin the connection. An oldstyle negotiation ends with them."""
        if self._phase is not Phase.NEW:
            raise LocalProtocolError(f"the greeting can't be sent {self._phase.value}")
        _GREETINGS[self._style](self)
        return self._take_events()

    def _greet_oldstyle(self) -> None:
        export = self._offer("")
        if export is None:
            return self._close("there is no default export", CloseKind.REFUSED)
        closed = self._closed_to_us(export)
        if closed is not None:
            return self._close(closed, CloseKind.REFUSED)
        size = export.size // SECTOR * SECTOR
        self._send(frames.oldstyle_greeting(size, export.flags, self._role))
        return self._ready(Agreement(export, oldstyle=True, role=self._role))

    def _announced(self, option: int) -> None:
        if option == Option.SET_META_CONTEXT:
            # Whether or not it succeeds, it undoes the one before.
            self._terms.contexts = ()

    # Exports

    def _offer(self, name: str) -> ExportInfo | None:
        """Return the export as it is described to this client."""
        export = self._directory.find(name or self._default_export)
        if export is None:
            return None
        flags = (export.flags | TransmissionFlag.HAS_FLAGS) & ~_NEGOTIATED_FLAGS
        if self._terms.structured:
            flags |= TransmissionFlag.SEND_DF
        if self._terms.extended and self._terms.contexts_for(name):
            flags |= export.flags & TransmissionFlag.BLOCK_STATUS_PAYLOAD
        return replace(export, flags=flags)

    def _closed_to_us(self, export: ExportInfo) -> str | None:
        """Return the reason that this client may not use *export*, or None."""
        return None if self._gate is None else self._gate(export.name, self._terms.private)

    def _enter(self, export: ExportInfo, name: str) -> None:
        terms = self._terms
        self._ready(
            Agreement(
                export,
                structured=terms.structured,
                extended=terms.extended,
                contexts=terms.contexts_for(name),
                tls=self._tls_is_up,
                private=tuple(sorted(terms.private.items())),
            )
        )

    def _export_name(self, name: str) -> None:
        if self._terms.extended:
            raise RemoteProtocolError("EXPORT_NAME after EXTENDED_HEADERS")
        export = self._offer(name)
        if export is None:
            return self._refuse(OptionReply.ERR_UNKNOWN, _NO_SUCH_EXPORT)
        closed = self._closed_to_us(export)
        if closed is not None:
            return self._refuse(OptionReply.ERR_POLICY, closed)
        layout = frames.EXPORT if self._no_zeroes else frames.EXPORT_PADDED
        self._send(layout.pack(export.size, export.flags))
        return self._enter(export, name)

    def _info(self, request: ExportRequest) -> None:
        self._describe(request)

    def _go(self, request: ExportRequest) -> None:
        export = self._describe(request)
        if export is not None:
            self._enter(export, request.name)

    def _describe(self, request: ExportRequest) -> ExportInfo | None:
        export = self._offer(request.name)
        if export is None:
            self._refuse(OptionReply.ERR_UNKNOWN, _NO_SUCH_EXPORT)
        elif (closed := self._closed_to_us(export)) is not None:
            self._refuse(OptionReply.ERR_POLICY, closed)
            return None
        else:
            infos = ((OptionReply.INFO, info) for info in _infos(export, request.infos))
            self._answer(*infos, ACK)
        return export

    def _list(self, _: None) -> None:
        if not self._directory.listable():
            return self._refuse(OptionReply.ERR_POLICY, "this server doesn't list its exports")
        # A copy: exports may come and go before the client has read the first entries.
        names = list(self._directory.names())
        entries = ((OptionReply.SERVER, frames.export_entry(*each)) for each in names)
        return self._answer_at_length(itertools.chain(entries, (ACK,)))

    # Reply styles, TLS and meta contexts

    def _starttls(self, _: None) -> None:
        if self._tls_is_up:
            return self._refuse(OptionReply.ERR_INVALID, "TLS is in use already")
        if self._tls is TLSMode.OFF:
            return self._refuse(OptionReply.ERR_POLICY, "this server has no TLS")
        self._answer(ACK)
        return self._start_tls()

    def _encrypted(self) -> None:
        self._tls_is_up = True
        self._terms = _Terms()

    def _structured_reply(self, _: None) -> None:
        if self._terms.extended:
            text = "extended headers are in use already"
            return self._refuse(OptionReply.ERR_EXT_HEADER_REQD, text)
        self._terms.structured = True
        return self._answer(ACK)

    def _extended_headers(self, _: None) -> None:
        self._terms.structured = self._terms.extended = True
        self._answer(ACK)

    def _list_meta_context(self, request: ContextRequest) -> None:
        export = self._export_with_contexts(request)
        if export is not None:
            names = meta_contexts.listed(export.contexts, request.queries)
            self._answer_contexts([(0, name) for name in names])

    def _set_meta_context(self, request: ContextRequest) -> None:
        export = self._export_with_contexts(request)
        if export is not None:
            self._terms.contexts_of = request.name
            self._terms.contexts = meta_contexts.selected(export.contexts, request.queries)
            self._answer_contexts(self._terms.contexts)

    def _export_with_contexts(self, request: ContextRequest) -> ExportInfo | None:
        if not self._terms.structured:
            self._refuse(OptionReply.ERR_INVALID, "structured replies must be negotiated first")
        elif len(request.queries) > MAX_QUERIES:
            self._refuse(OptionReply.ERR_TOO_BIG, f"more than {MAX_QUERIES} queries")
        elif (export := self._offer(request.name)) is None:
            self._refuse(OptionReply.ERR_UNKNOWN, _NO_SUCH_EXPORT)
        else:
            return export
        return None

    def _answer_contexts(self, contexts: Sequence[tuple[int, str]]) -> None:
        entries = (frames.context_entry(number, name) for number, name in contexts)
        self._answer(*((OptionReply.META_CONTEXT, entry) for entry in entries), ACK)

    def _abort(self, _: bytes) -> None:
        self._answer(ACK)
        self._close("the client ended the negotiation", CloseKind.ENDED)

    def _private(self, answered: _Answered) -> None:
        final = answered.replies[-1][0] if answered.replies else None
        if final == OptionReply.ACK:
            self._terms.private[self._option] = answered.data
        elif final is None or not final & OPTION_ERROR_BIT:
            raise LocalProtocolError(f"no final reply to the private option {self._option}")
        self._answer(*answered.replies)


class RefusingHandshake(ServerHandshake):
    """A negotiation that refuses every option for the same reason.

    :param reason: the text that the client is given.
    """

    def __init__(self, directory: Directory, reason: str) -> None:
        super().__init__(directory)
        self._reason = reason

    def _refusal(self, length: int) -> tuple[OptionReply, str] | None:
        if self._option == Option.ABORT:
            return super()._refusal(length)
        return OptionReply.ERR_POLICY, self._reason


@dataclass(frozen=True)
class _Answered:
    """A private option with its replies."""

    data: bytes
    replies: Sequence[tuple[int, bytes]]


def _infos(export: ExportInfo, wanted: frozenset[int]) -> list[bytes]:
    """Return the INFO replies on *export*: size and block sizes always, texts if asked for."""
    infos = [frames.INFO_EXPORT.pack(Info.EXPORT, export.size, export.flags)]
    if Info.NAME in wanted:
        infos.append(frames.info_text(Info.NAME, export.name))
    if Info.DESCRIPTION in wanted and export.description:
        infos.append(frames.info_text(Info.DESCRIPTION, export.description))
    infos.append(frames.INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, *export.block_sizes))
    return infos


def _private_rules(options: Mapping[int, PrivateOption]) -> dict[int, OptionRule[Any]]:
    taken = sorted(number for number in options if number in set(Option))
    if taken:
        raise LocalProtocolError(f"{name_of(Option, taken[0])} can't be a private option")
    return {number: _private_rule(reply) for number, reply in options.items()}


def _private_rule(reply: PrivateOption) -> OptionRule[_Answered]:
    return OptionRule(lambda data: _Answered(data, reply(data)), ServerHandshake._private)


# No name is repeated: it can be as long as a whole message may be.
_NO_SUCH_EXPORT = "there is no such export"
# Flags that the client is told only once it has agreed to the option that each depends on.
_NEGOTIATED_FLAGS = TransmissionFlag.SEND_DF | TransmissionFlag.BLOCK_STATUS_PAYLOAD

_GREETINGS: dict[HandshakeStyle, Callable[[ServerHandshake], None]] = {
    HandshakeStyle.FIXED_NEWSTYLE: ServerHandshake._greet,
    HandshakeStyle.OLDSTYLE: ServerHandshake._greet_oldstyle,
}

# Options that aren't listed are unsupported; PEEK_EXPORT was withdrawn from the specification.
_RULES: dict[int, OptionRule[Any]] = {
    Option.EXPORT_NAME: OptionRule(frames.decode_string, ServerHandshake._export_name),
    Option.ABORT: OptionRule(bytes, ServerHandshake._abort),
    Option.LIST: OptionRule(frames.parse_nothing, ServerHandshake._list),
    Option.STARTTLS: OptionRule(frames.parse_nothing, ServerHandshake._starttls),
    Option.INFO: OptionRule(frames.parse_export_request, ServerHandshake._info),
    Option.GO: OptionRule(frames.parse_export_request, ServerHandshake._go),
    Option.STRUCTURED_REPLY: OptionRule(frames.parse_nothing, ServerHandshake._structured_reply),
    Option.EXTENDED_HEADERS: OptionRule(frames.parse_nothing, ServerHandshake._extended_headers),
    Option.LIST_META_CONTEXT: OptionRule(
        meta_contexts.parse_queries, ServerHandshake._list_meta_context
    ),
    Option.SET_META_CONTEXT: OptionRule(
        meta_contexts.parse_queries, ServerHandshake._set_meta_context
    ),
}
