"""The client's side of the negotiation: it asks for the best options, and does with fewer.

Three tables at the end list the options to ask for, in order: to use an export, to list the
exports, and to query a journal. ``client_options`` goes through them. A server that doesn't know an
option is not at fault. The client leaves one that refuses something it insists on (REFUSED) or that
breaks a rule (VIOLATION). Opening the connection, TLS itself, and the time limit belong to the
caller.

Specification: proto.md, "Handshake", "Option types"; EXTENDED_HEADERS from the branch
extension-ext-header.
"""

from __future__ import annotations

from collections.abc import Callable

from flexmigrate.errors import RemoteProtocolError
from flexmigrate.wire import frames
from flexmigrate.wire.agreement import (
    DEFAULT_BLOCK_SIZES,
    Agreement,
    Close,
    CloseKind,
    Event,
    ExportInfo,
    Listed,
    PrivateReply,
    Ready,
    Send,
    StartTLS,
    TLSMode,
    block_size_fault,
)
from flexmigrate.wire.client_options import (
    STARTTLS,
    ClientNegotiation,
    ClientOptions,
    OptionStep,
    SessionRequest,
)
from flexmigrate.wire.constants import (
    MAX_EXPORT_SIZE,
    MAX_QUERIES,
    Info,
    Option,
    OptionReply,
    ServerRole,
    TransmissionFlag,
)
from flexmigrate.wire.handover import (
    SESSION_OPTION,
    SESSION_REPLY,
    parse_answer,
)

__all__ = [
    "Agreement",
    "ClientHandshake",
    "ClientOptions",
    "Close",
    "CloseKind",
    "Event",
    "ExportInfo",
    "ListHandshake",
    "Listed",
    "PrivateReply",
    "QueryHandshake",
    "Ready",
    "Send",
    "SessionRequest",
    "StartTLS",
    "TLSMode",
]


class ClientHandshake(ClientNegotiation):
    """The negotiation of a client that wants to use an export."""

    def __init__(self, options: ClientOptions | None = None) -> None:
        super().__init__(options or ClientOptions(), _TRANSMISSION)
        self._structured = False
        self._extended = False
        self._contexts: dict[int, str] = {}
        self._session: bytes | None = None
        self._may_ask_again = True  # the session, with other data
        self._is_probing = False
        self._is_oldstyle = False
        self._role = ServerRole.UNKNOWN
        self._name = self._options.name
        self._description = ""
        self._size: int | None = None
        self._flags = TransmissionFlag(0)
        self._block_sizes = DEFAULT_BLOCK_SIZES

    # Servers without options

    def _oldstyle(self, frame: bytes) -> None:
        if self._options.tls is TLSMode.REQUIRE:
            self._close("TLS is required, and the server is oldstyle: it has none", _REFUSED)
        elif self._options.name:
            self._close("the server is oldstyle: its export has no name", _REFUSED)
        else:
            size, flags, self._role = frames.parse_oldstyle(frame)
            self._is_oldstyle = True
            self._enter(size, flags)

    def _plain_newstyle(self) -> None:
        self._ask_by_name()

    def _ask_by_name(self) -> None:
        """Ask with EXPORT_NAME, as old clients do; a server that refuses closes the connection."""
        layout = frames.EXPORT if self._no_zeroes else frames.EXPORT_PADDED
        self._send(frames.option(Option.EXPORT_NAME, frames.encode_string(self._options.name)))
        self._expect(layout.size, lambda frame: self._enter(*layout.unpack(frame)))

    def _enter(self, size: int, flags: int) -> None:
        self._take_export(size, flags)
        self._finish()

    # Reply styles and meta contexts

    def _extended_request(self) -> bytes | None:
        return b"" if self._options.structured and self._options.extended else None

    def _extended_acknowledged(self) -> None:
        self._structured = self._extended = True
        self._ask_next()

    def _structured_request(self) -> bytes | None:
        return b"" if self._options.structured and not self._extended else None

    def _structured_acknowledged(self) -> None:
        self._structured = True
        self._ask_next()

    def _contexts_request(self) -> bytes | None:
        if not (self._structured and self._options.contexts):
            return None
        return frames.context_request(self._options.name, self._options.contexts)

    def _context(self, data: bytes) -> None:
        number, name = frames.parse_context_entry(data)
        if number in self._contexts:
            raise RemoteProtocolError(f"two meta contexts with the id {number}")
        if len(self._contexts) == MAX_QUERIES:
            raise RemoteProtocolError(f"more than {MAX_QUERIES} meta contexts")
        self._contexts[number] = name

    def _contexts_refused(self, error: int, text: str) -> None:
        # Entries that came before the error don't count ("Option types", LIST_META_CONTEXT).
        self._contexts.clear()
        self._ask_next()

    # Sessions with another flexmigrate

    def _session_request(self) -> bytes | None:
        return None if self._options.session is None else self._options.session.opening

    def _session_told(self, data: bytes) -> None:
        self._session = data

    def _session_acknowledged(self) -> None:
        told, session = self._session, self._options.session
        if told is None or session is None:
            raise RemoteProtocolError("SESSION acknowledged without an answer")
        answer = parse_answer(told)
        verdict = session.judge(told)
        if self._is_probing:
            peer = answer.name or "the server"
            self._decline(f"{peer} supports sessions, and waits for no migration")
        elif isinstance(verdict, str):
            self._decline(verdict)
        elif verdict is not None and self._may_ask_again:
            self._may_ask_again, self._session = False, None
            self._ask(SESSION_OPTION, verdict)
        elif answer.refusal:
            self._decline(answer.refusal)
        else:
            if session.optional:
                self._session = None  # the answer only says that there is no session
            self._ask_next()

    def _decline(self, reason: str) -> None:
        self._send(frames.option(Option.ABORT))
        self._close(reason, CloseKind.DECLINED)

    def _session_refused(self, error: int, text: str) -> None:
        session = self._options.session
        assert session is not None
        if not session.optional and error != OptionReply.ERR_UNSUP:
            # The server may well know the option; then to go on without a session isn't safe.
            self._give_up(text)
        elif not session.optional and session.probe is not None and not self._is_probing:
            self._is_probing = True
            self._ask(SESSION_OPTION, session.probe)
        else:
            self._session = None
            self._ask_next()

    # The export

    def _go_request(self) -> bytes:
        return frames.export_request(self._options.name, [Info.BLOCK_SIZE])

    def _go_refused(self, error: int, text: str) -> None:
        # With extended headers agreed on, EXPORT_NAME may not be used.
        if error == OptionReply.ERR_UNSUP and not self._extended:
            self._ask_by_name()
        else:
            self._give_up(text)

    def _info(self, data: bytes) -> None:
        if len(data) < frames.U16.size:
            raise RemoteProtocolError("an INFO reply without a type")
        (kind,) = frames.U16.unpack_from(data)
        take = _INFOS.get(kind)
        if take is not None:
            take(self, data)

    def _info_export(self, data: bytes) -> None:
        _, size, flags = frames.parse_fixed(frames.INFO_EXPORT, data)
        self._take_export(size, flags)

    def _info_name(self, data: bytes) -> None:
        self._name = frames.decode_string(data[frames.U16.size :])

    def _info_description(self, data: bytes) -> None:
        self._description = frames.display_text(data[frames.U16.size :])

    def _info_block_size(self, data: bytes) -> None:
        _, minimum, preferred, maximum = frames.parse_fixed(frames.INFO_BLOCK_SIZE, data)
        fault = block_size_fault((minimum, preferred, maximum))
        if fault is not None:
            raise RemoteProtocolError(fault)
        self._block_sizes = (minimum, preferred, maximum)

    def _take_export(self, size: int, flags: int) -> None:
        if size > MAX_EXPORT_SIZE:
            raise RemoteProtocolError(f"an export of {size} bytes")
        self._size = size
        # Flags that are unknown, and in oldstyle the upper half, are to be ignored.
        self._flags = TransmissionFlag(flags & _KNOWN_FLAGS)

    def _finish(self) -> None:
        if self._size is None:
            raise RemoteProtocolError("GO acknowledged without information on the export")
        export = ExportInfo(
            self._name, self._size, self._flags, self._description, self._block_sizes, ()
        )
        self._ready(
            Agreement(
                export,
                structured=self._structured,
                extended=self._extended,
                contexts=tuple(self._contexts.items()),
                tls=self._tls_is_up,
                private=() if self._session is None else ((SESSION_OPTION, self._session),),
                oldstyle=self._is_oldstyle,
                role=self._role,
            )
        )


class ListHandshake(ClientNegotiation):
    """The negotiation of a client that lists the exports, and leaves.

    Only *tls* of the options counts.
    """

    def __init__(self, options: ClientOptions | None = None) -> None:
        super().__init__(options or ClientOptions(), _LISTING)
        self._exports: list[tuple[str, str]] = []

    def _oldstyle(self, frame: bytes) -> None:
        self._close("the server is oldstyle: it has one export, without a name", _REFUSED)

    def _plain_newstyle(self) -> None:
        self._close("the server is too old to list its exports", _REFUSED)

    def _list_request(self) -> bytes:
        return b""

    def _entry(self, data: bytes) -> None:
        self._exports.append(frames.parse_export_entry(data))

    def _listed(self) -> None:
        self._send(frames.option(Option.ABORT))
        self._events.append(Listed(tuple(self._exports)))
        self._close("the exports are listed", CloseKind.ENDED)

    def _list_refused(self, error: int, text: str) -> None:
        self._give_up(text)


class QueryHandshake(ClientNegotiation):
    """The negotiation of a flexmigrate that asks another one for its journal, and leaves.

    Only *tls* and *session* of the options count; *session* is required.
    """

    def __init__(self, options: ClientOptions) -> None:
        super().__init__(options, _QUERY)
        self._answer: bytes | None = None

    def _oldstyle(self, frame: bytes) -> None:
        self._close("the server is oldstyle, and can't be queried", _REFUSED)

    def _plain_newstyle(self) -> None:
        self._close("the server is too old to be queried", _REFUSED)

    def _session_request(self) -> bytes | None:
        return None if self._options.session is None else self._options.session.opening

    def _session_told(self, data: bytes) -> None:
        self._answer = data

    def _session_acknowledged(self) -> None:
        if self._answer is None:
            raise RemoteProtocolError("SESSION acknowledged without an answer")
        self._send(frames.option(Option.ABORT))
        self._events.append(PrivateReply(self._answer))
        self._close("the query is answered", CloseKind.ENDED)

    def _session_refused(self, error: int, text: str) -> None:
        self._give_up(text)


_REFUSED = CloseKind.REFUSED
_KNOWN_FLAGS = sum(flag.value for flag in TransmissionFlag)

# The details of an export that the client understands; it ignores others.
_INFOS: dict[int, Callable[[ClientHandshake, bytes], None]] = {
    Info.EXPORT: ClientHandshake._info_export,
    Info.NAME: ClientHandshake._info_name,
    Info.DESCRIPTION: ClientHandshake._info_description,
    Info.BLOCK_SIZE: ClientHandshake._info_block_size,
}

_TRANSMISSION: dict[int, OptionStep] = {
    Option.STARTTLS: STARTTLS,
    Option.EXTENDED_HEADERS: OptionStep(
        ClientHandshake._extended_request,
        ClientHandshake._extended_acknowledged,
        ClientHandshake._ask_next,
    ),
    Option.STRUCTURED_REPLY: OptionStep(
        ClientHandshake._structured_request,
        ClientHandshake._structured_acknowledged,
        ClientHandshake._ask_next,
    ),
    Option.SET_META_CONTEXT: OptionStep(
        ClientHandshake._contexts_request,
        ClientHandshake._ask_next,
        ClientHandshake._contexts_refused,
        {OptionReply.META_CONTEXT: ClientHandshake._context},
    ),
    SESSION_OPTION: OptionStep(
        ClientHandshake._session_request,
        ClientHandshake._session_acknowledged,
        ClientHandshake._session_refused,
        {SESSION_REPLY: ClientHandshake._session_told},
    ),
    Option.GO: OptionStep(
        ClientHandshake._go_request,
        ClientHandshake._finish,
        ClientHandshake._go_refused,
        {OptionReply.INFO: ClientHandshake._info},
    ),
}

_QUERY: dict[int, OptionStep] = {
    Option.STARTTLS: STARTTLS,
    SESSION_OPTION: OptionStep(
        QueryHandshake._session_request,
        QueryHandshake._session_acknowledged,
        QueryHandshake._session_refused,
        {SESSION_REPLY: QueryHandshake._session_told},
    ),
}

_LISTING: dict[int, OptionStep] = {
    Option.STARTTLS: STARTTLS,
    Option.LIST: OptionStep(
        ListHandshake._list_request,
        ListHandshake._listed,
        ListHandshake._list_refused,
        {OptionReply.SERVER: ListHandshake._entry},
    ),
}
