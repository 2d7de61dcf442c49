"""The server's side of the exchange of options: checks of each option before it is carried out.

Every option is counted, bounded, checked against the state of TLS, and looked up in a table; only
then its data is read into memory, parsed, and acted on. The options themselves are defined in
``handshake``.

Specification: proto.md, "Newstyle negotiation", "TLS support", "Option reply types".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flexmigrate.errors import RemoteProtocolError
from flexmigrate.wire import frames
from flexmigrate.wire.agreement import CloseKind, TLSMode
from flexmigrate.wire.constants import (
    MAX_ANSWERS,
    MAX_DRAINED_OPTION,
    MAX_OPTION_LENGTH,
    MAX_OPTIONS,
    OPTION_MAGIC,
    ClientFlag,
    HandshakeFlag,
    Option,
    OptionReply,
    name_of,
)
from flexmigrate.wire.engine import Negotiation

T = TypeVar("T")

ACK = (OptionReply.ACK, b"")

_OUR_FLAGS = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
# A plain number: the complement of a flag type would leave out the bits that have no name.
_KNOWN_CLIENT_FLAGS = int(ClientFlag.FIXED_NEWSTYLE | ClientFlag.NO_ZEROES)
_ALLOWED_IN_PLAINTEXT = {Option.STARTTLS, Option.ABORT}


@dataclass(frozen=True)
class OptionRule(Generic[T]):
    """One row of the table of options.

    :ivar parse: parses the option's data; RemoteProtocolError becomes the answer ERR_INVALID.
    :ivar act: is given the negotiation and the result of *parse*, and answers.
    """

    parse: Callable[[bytes], T]
    act: Callable[[Any, T], None]


class Haggling(Negotiation):
    """A server's exchange of options with a client, by the table *rules*."""

    def __init__(self, rules: Mapping[int, OptionRule[Any]], tls: TLSMode) -> None:
        super().__init__()
        self._rules = rules
        self._tls = tls
        self._tls_is_up = False
        self._no_zeroes = False
        self._shutting_down = False
        self._option = 0
        self._options_seen = 0
        self._bytes_answered = 0

    def shut_down(self) -> None:
        """Refuse everything from now on with ERR_SHUTDOWN: the server is about to end."""
        self._shutting_down = True

    def _greet(self) -> None:
        self._send(frames.newstyle_greeting(_OUR_FLAGS))
        self._begin(frames.CLIENT_FLAGS.size, self._client_flags)

    def _announced(self, option: int) -> None:
        """Note that *option* comes; it may still be refused."""

    def _client_flags(self, frame: bytes) -> None:
        (value,) = frames.CLIENT_FLAGS.unpack(frame)
        if value & ~_KNOWN_CLIENT_FLAGS:
            raise RemoteProtocolError(f"client flags {name_of(ClientFlag, value)}")
        self._no_zeroes = bool(value & ClientFlag.NO_ZEROES)
        if not value & ClientFlag.FIXED_NEWSTYLE:
            # A client with other flags must not be offered TLS ("Server-side requirements").
            if self._tls is TLSMode.REQUIRE:
                return self._close("TLS is required, and the client has none", CloseKind.REFUSED)
            self._tls = TLSMode.OFF
        return self._expect_option()

    def _expect_option(self) -> None:
        self._expect(frames.OPTION.size, self._option_header)

    def _option_header(self, frame: bytes) -> None:
        magic, self._option, length = frames.OPTION.unpack(frame)
        self._check_header(magic, length)
        self._announced(self._option)
        refusal = self._refusal(length)
        if refusal is None:
            return self._expect(length, self._option_data)
        self._expect_option()
        self._skip(length)
        return self._refuse(*refusal)

    def _check_header(self, magic: int, length: int) -> None:
        if magic != OPTION_MAGIC:
            raise RemoteProtocolError(f"option magic {magic:#018x}")
        if length > MAX_DRAINED_OPTION:
            name = name_of(Option, self._option)
            raise RemoteProtocolError(f"{name} announces {length} bytes of data")
        self._options_seen += 1
        if self._options_seen > MAX_OPTIONS:
            raise RemoteProtocolError(f"more than {MAX_OPTIONS} options")

    def _refusal(self, length: int) -> tuple[OptionReply, str] | None:
        """Return the error for an option that is refused whatever its data, or None."""
        if self._shutting_down and self._option != Option.ABORT:
            return OptionReply.ERR_SHUTDOWN, "the server is shutting down"
        if self._tls_is_missing() and self._option not in _ALLOWED_IN_PLAINTEXT:
            return OptionReply.ERR_TLS_REQD, "TLS is required"
        if self._option not in self._rules:
            return OptionReply.ERR_UNSUP, "the option is not supported"
        if length > MAX_OPTION_LENGTH:
            return OptionReply.ERR_TOO_BIG, f"more than {MAX_OPTION_LENGTH} bytes of data"
        return None

    def _tls_is_missing(self) -> bool:
        return self._tls is TLSMode.REQUIRE and not self._tls_is_up

    def _option_data(self, data: bytes) -> None:
        self._expect_option()
        rule = self._rules[self._option]
        try:
            parsed = rule.parse(data)
        except RemoteProtocolError as error:
            return self._refuse(OptionReply.ERR_INVALID, str(error))
        return rule.act(self, parsed)

    def _answer(self, *replies: tuple[int, bytes]) -> None:
        """Send all replies to the current option, as (type, data) pairs."""
        self._send(b"".join(self._counted(replies)))

    def _answer_at_length(self, replies: Iterable[tuple[int, bytes]]) -> None:
        """Send many replies; each is made when the client has read those before it."""
        self._send_each(self._counted(replies))

    def _counted(self, replies: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
        for kind, part in replies:
            data = frames.option_reply(self._option, kind, part)
            self._bytes_answered += len(data)
            if self._bytes_answered > MAX_ANSWERS:
                raise RemoteProtocolError(
                    f"a client that asks for more than {MAX_ANSWERS} bytes of replies"
                )
            yield data

    def _refuse(self, error: OptionReply, text: str) -> None:
        # There is no reply to EXPORT_NAME, so it can't be refused in another way.
        if self._option == Option.EXPORT_NAME:
            self._close(f"EXPORT_NAME refused: {text}", CloseKind.REFUSED)
        else:
            self._answer((error, text.encode()))
