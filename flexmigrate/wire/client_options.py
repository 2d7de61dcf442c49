"""The client's side of the exchange of options: it asks for one option after another.

A table says for each option what is asked for, which replies may come, and what follows from them;
its order is the order of asking. Every reply is bounded, and must answer the option that was asked
for last. The meaning of the options is defined in ``client_handshake``, except for STARTTLS, which
every negotiation with TLS begins with.

Specification: proto.md, "Handshake", "Client-side requirements", "Option reply types".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire import frames
from flexmigrate.wire.agreement import CloseKind, TLSMode
from flexmigrate.wire.constants import (
    INIT_MAGIC,
    MAX_OPTION_REPLIES,
    MAX_OPTION_REPLY,
    MAX_QUERIES,
    OLDSTYLE_MAGIC,
    OPTION_ERROR_BIT,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    HandshakeFlag,
    Option,
    OptionReply,
    name_of,
)
from flexmigrate.wire.engine import Negotiation
from flexmigrate.wire.handover import SESSION_OPTION

_KNOWN_FLAGS = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES


@dataclass(frozen=True)
class SessionRequest:
    """The client's part of flexmigrate's private session option (``wire.handover``).

    :ivar opening: the option's data.
    :ivar judge: is given the data of an answer; returns the data to send instead of *opening*, or
        as text the reason to leave the server, or None to do as the answer says.
    :ivar probe: data of the same option, sent to a server that calls the option unsupported: one
        that accepts this does know the option, and is left. None: no probe.
    :ivar optional: whether the opening only announces that no session is wanted. If so, the client
        goes on with a server that refuses the option for any reason; if not, only with one that
        doesn't know it.
    """

    opening: bytes
    judge: Callable[[bytes], bytes | str | None] = lambda data: None
    probe: bytes | None = None
    optional: bool = False


@dataclass(frozen=True)
class ClientOptions:
    """The options that a client asks for; LocalProtocolError if the protocol can't express them.

    :ivar name: the export; empty for the server's default.
    :ivar structured: whether to ask for structured replies, which the next two options need.
    :ivar extended: whether to ask for extended headers.
    :ivar contexts: the meta contexts to select, at most MAX_QUERIES.
    :ivar tls: OFF never asks for TLS, ON continues without it if the server has none, REQUIRE
        doesn't.
    :ivar session: the session to ask for, or None. If the server declines it, the client leaves.
    """

    name: str = ""
    structured: bool = True
    extended: bool = True
    contexts: tuple[str, ...] = ()
    tls: TLSMode = TLSMode.OFF
    session: SessionRequest | None = None

    def __post_init__(self) -> None:
        frames.encode_string(self.name)
        for query in self.contexts:
            frames.encode_string(query)
        if len(self.contexts) > MAX_QUERIES:
            raise LocalProtocolError(f"more than {MAX_QUERIES} meta contexts")


@dataclass(frozen=True)
class OptionStep:
    """One row of the table: an option and its replies. Each function takes the negotiation first.

    :ivar request: returns the option's data, or None if the option isn't wanted.
    :ivar acknowledged: called upon ACK.
    :ivar refused: called upon an error; it is also given the error's type and its text.
    :ivar parts: the functions that take the data of replies before the final one, by reply type.
    """

    request: Callable[[Any], bytes | None]
    acknowledged: Callable[[Any], None]
    refused: Callable[[Any, int, str], None]
    parts: Mapping[int, Callable[[Any, bytes], None]] = field(default_factory=dict)


class ClientNegotiation(Negotiation, ABC):
    """A client's exchange of options with a server, by the table *steps*."""

    def __init__(self, options: ClientOptions, steps: Mapping[int, OptionStep]) -> None:
        super().__init__()
        self._options = options
        self._steps = steps
        self._to_ask = iter(steps)
        self._option = next(iter(steps))
        self._reply = 0
        self._bytes_replied = 0
        self._no_zeroes = False
        self._tls_is_up = False
        self._begin(frames.HELLO.size, self._hello)

    # The greeting

    def _hello(self, frame: bytes) -> None:
        init, style = frames.HELLO.unpack(frame)
        if init != INIT_MAGIC:
            raise RemoteProtocolError(f"not an NBD server: it begins with {frame[:8]!r}")
        if style == OPTION_MAGIC:
            self._expect(frames.HANDSHAKE_FLAGS.size, self._newstyle)
        elif style == OLDSTYLE_MAGIC:
            self._expect(frames.OLDSTYLE_REST.size, self._oldstyle)
        else:
            raise RemoteProtocolError(f"a greeting of an unknown style: {style:#018x}")

    def _newstyle(self, frame: bytes) -> None:
        (flags,) = frames.HANDSHAKE_FLAGS.unpack(frame)
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        # Each flag of the client has the number of the server's flag that it answers.
        self._send(frames.CLIENT_FLAGS.pack(flags & _KNOWN_FLAGS))
        if flags & HandshakeFlag.FIXED_NEWSTYLE:
            self._ask_next()
        elif self._options.tls is TLSMode.REQUIRE:
            self._close("TLS is required, and the server has none", CloseKind.REFUSED)
        else:
            self._plain_newstyle()

    @abstractmethod
    def _oldstyle(self, frame: bytes) -> None:
        """Handle the rest of an oldstyle greeting."""

    @abstractmethod
    def _plain_newstyle(self) -> None:
        """Continue with a server that knows no option but EXPORT_NAME."""

    # The options, one after another

    def _ask_next(self, *_: object) -> None:
        """Ask for the next option that is wanted. The last one always is."""
        for option in self._to_ask:
            data = self._steps[option].request(self)
            if data is not None:
                return self._ask(option, data)
        raise LocalProtocolError("a negotiation whose last option isn't wanted")

    def _ask(self, option: int, data: bytes) -> None:
        self._option = option
        self._bytes_replied = 0
        self._send(frames.option(option, data))
        self._expect_reply()

    @property
    def _option_name(self) -> str:
        return "SESSION" if self._option == SESSION_OPTION else name_of(Option, self._option)

    def _expect_reply(self) -> None:
        self._expect(frames.OPTION_REPLY.size, self._reply_header)

    def _reply_header(self, frame: bytes) -> None:
        magic, option, self._reply, length = frames.OPTION_REPLY.unpack(frame)
        if magic != OPTION_REPLY_MAGIC:
            raise RemoteProtocolError(f"option reply magic {magic:#018x}")
        if option != self._option:
            asked = self._option_name
            raise RemoteProtocolError(f"a reply to {name_of(Option, option)} instead of {asked}")
        self._bytes_replied += len(frame) + length
        if length > MAX_OPTION_REPLY or self._bytes_replied > MAX_OPTION_REPLIES:
            raise RemoteProtocolError(f"the reply to {self._option_name} is too long")
        self._expect(length, self._reply_data)

    def _reply_data(self, data: bytes) -> None:
        step = self._steps[self._option]
        if self._reply == OptionReply.ACK:
            frames.parse_nothing(data)
            step.acknowledged(self)
        elif self._reply & OPTION_ERROR_BIT:
            self._refused(step, frames.display_text(data))
        else:
            self._part(step, data)

    def _refused(self, step: OptionStep, text: str) -> None:
        # The specification then demands to end the session ("Termination of the session ...").
        if self._reply == OptionReply.ERR_SHUTDOWN:
            self._give_up(text)
        else:
            step.refused(self, self._reply, text)

    def _part(self, step: OptionStep, data: bytes) -> None:
        take = step.parts.get(self._reply)
        if take is None:
            kind = name_of(OptionReply, self._reply)
            raise RemoteProtocolError(f"a reply {kind} to {self._option_name}")
        take(self, data)
        self._expect_reply()

    def _give_up(self, text: str) -> None:
        """Leave the server after an error, in good order."""
        error = name_of(OptionReply, self._reply)
        self._send(frames.option(Option.ABORT))
        detail = f": {text}" if text else ""
        self._close(f"the server answered {error} to {self._option_name}{detail}", _REFUSED)

    # STARTTLS

    def _starttls_request(self) -> bytes | None:
        return None if self._options.tls is TLSMode.OFF else b""

    def _starttls_refused(self, _: int, text: str) -> None:
        if self._options.tls is TLSMode.REQUIRE:
            self._give_up(text)
        else:
            self._ask_next()

    def _encrypted(self) -> None:
        self._tls_is_up = True
        self._ask_next()


_REFUSED = CloseKind.REFUSED

STARTTLS = OptionStep(
    ClientNegotiation._starttls_request,
    ClientNegotiation._start_tls,
    ClientNegotiation._starttls_refused,
)
"""The first step of every negotiation that may be encrypted."""
