"""From steps to bytes, on the client's side: one option asked for after another.

The law of this file: a table says for each option what is asked, which replies may come and what
follows from them, and its order is the order of asking. Every reply is bounded and must answer the
option that was asked last. What the options are for is not known here (see ``client_handshake``),
but for STARTTLS, which comes first for everyone who wants it.

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
class SessionWish:
    """What a client says of itself by our session option (``wire.handover``), and what it makes of
    the answers.

    :ivar opening: the option's data.
    :ivar judge: given the data of an answer, returns what to say of ourselves instead; or, as text,
        why the server is left; or None to do as the answer says.
    :ivar probe: data of the same option by which a server that calls it unsupported is asked once
        more: one that understands this knows the option, and is left. None not to ask.
    :ivar optional: whether what is said is that no session is wished for; then a server that won't
        hear it, for whatever reason, is gone on with, and else only one that doesn't know the
        option.
    """

    opening: bytes
    judge: Callable[[bytes], bytes | str | None] = lambda data: None
    probe: bytes | None = None
    optional: bool = False


@dataclass(frozen=True)
class Wish:
    """What a client would like to have; LocalProtocolError if it can't even be asked for.

    :ivar name: the export; empty for the server's default.
    :ivar structured: whether to ask for reply chunks; nothing of the next two is had without them.
    :ivar extended: whether to ask for extended headers.
    :ivar contexts: the meta contexts to select, at most MAX_QUERIES.
    :ivar tls: OFF never asks for TLS, ON goes on without it where there is none, REQUIRE does not.
    :ivar session: what is said by our session option, or None for nothing. A server that declines
        it is left.
    """

    name: str = ""
    structured: bool = True
    extended: bool = True
    contexts: tuple[str, ...] = ()
    tls: TLSMode = TLSMode.OFF
    session: SessionWish | None = None

    def __post_init__(self) -> None:
        frames.encode_string(self.name)
        for query in self.contexts:
            frames.encode_string(query)
        if len(self.contexts) > MAX_QUERIES:
            raise LocalProtocolError(f"more than {MAX_QUERIES} meta contexts")


@dataclass(frozen=True)
class Step:
    """How one option is asked for; each function is given the negotiation first.

    :ivar request: returns the option's data, or None if the option isn't wanted.
    :ivar acknowledged: what follows from ACK.
    :ivar refused: what follows from an error; it is also given the error's type and its text.
    :ivar parts: what takes the data of the replies that may come before the final one, by type.
    """

    request: Callable[[Any], bytes | None]
    acknowledged: Callable[[Any], None]
    refused: Callable[[Any, int, str], None]
    parts: Mapping[int, Callable[[Any, bytes], None]] = field(default_factory=dict)


class Asking(Negotiation, ABC):
    """The exchange of options as a client sees it; which they are is in the table *steps*."""

    def __init__(self, wish: Wish, steps: Mapping[int, Step]) -> None:
        super().__init__()
        self._wish = wish
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
        elif self._wish.tls is TLSMode.REQUIRE:
            self._close("TLS is required, and the server has none", CloseKind.REFUSED)
        else:
            self._plain_newstyle()

    @abstractmethod
    def _oldstyle(self, frame: bytes) -> None:
        """Take the rest of an oldstyle greeting."""

    @abstractmethod
    def _plain_newstyle(self) -> None:
        """Go on with a server that knows no option but EXPORT_NAME."""

    # The walk

    def _ask_next(self, *_: object) -> None:
        """Ask for the next option that is wanted; the last one always is."""
        for option in self._to_ask:
            data = self._steps[option].request(self)
            if data is not None:
                return self._ask(option, data)
        raise LocalProtocolError("a negotiation whose last step isn't wanted")

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
            raise RemoteProtocolError(f"a reply to {name_of(Option, option)}, asked was {asked}")
        self._bytes_replied += len(frame) + length
        if length > MAX_OPTION_REPLY or self._bytes_replied > MAX_OPTION_REPLIES:
            raise RemoteProtocolError(f"too long an answer to {self._option_name}")
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

    def _refused(self, step: Step, text: str) -> None:
        # It has to be left then, whatever was asked ("Termination of the session ...").
        if self._reply == OptionReply.ERR_SHUTDOWN:
            self._give_up(text)
        else:
            step.refused(self, self._reply, text)

    def _part(self, step: Step, data: bytes) -> None:
        take = step.parts.get(self._reply)
        if take is None:
            kind = name_of(OptionReply, self._reply)
            raise RemoteProtocolError(f"a reply {kind} to {self._option_name}")
        take(self, data)
        self._expect_reply()

    def _give_up(self, text: str) -> None:
        """Leave the server after an error, politely."""
        error = name_of(OptionReply, self._reply)
        self._send(frames.option(Option.ABORT))
        detail = f": {text}" if text else ""
        self._close(f"the server answered {error} to {self._option_name}{detail}", _REFUSED)

    # STARTTLS

    def _starttls_request(self) -> bytes | None:
        return None if self._wish.tls is TLSMode.OFF else b""

    def _starttls_refused(self, _: int, text: str) -> None:
        if self._wish.tls is TLSMode.REQUIRE:
            self._give_up(text)
        else:
            self._ask_next()

    def _encrypted(self) -> None:
        self._tls_is_up = True
        self._ask_next()


_REFUSED = CloseKind.REFUSED

STARTTLS = Step(Asking._starttls_request, Asking._start_tls, Asking._starttls_refused)
"""The first step of every negotiation that may be encrypted."""
