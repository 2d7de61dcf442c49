"""The engine of a negotiation, the same for both roles: bytes in, events out.

It decides when a frame is complete, which method takes it, and which call is allowed in which
phase. It knows no option and no role. Its memory is bounded: it holds one incomplete frame, whose
length the role has limited, and the bytes of the call under way.

One call returns a limited number of bytes to send. Received bytes beyond that wait here until the
caller, who knows whether the peer reads its answers, calls again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum
from typing import TypeAlias

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire.agreement import Agreement, Close, CloseKind, Event, Ready, Send, StartTLS

Bytes: TypeAlias = "bytes | bytearray | memoryview"

ENOUGH_TOLD = 64 * 1024
"""Bytes to send after which a call takes no more frames."""


class Phase(Enum):
    """The state of a negotiation; the values complete the sentence "this can't be done ..."."""

    NEW = "before the greeting"
    HAGGLING = "while haggling"
    STARTING_TLS = "while TLS is being started"
    READY = "after both sides agreed"
    CLOSED = "after the end"


class Negotiation:
    """The base of both roles: a role takes complete frames, and answers with events."""

    def __init__(self) -> None:
        self._phase = Phase.NEW
        self._buffer = bytearray()
        self._skipping = 0
        self._frame_length = 0
        self._take: Callable[[bytes], None] = self._nobody
        self._events: list[Event] = []
        self._is_full = False
        self._told = 0  # bytes to send in these events
        self._rest: Iterator[bytes] = iter(())  # of the answer that is being sent

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self._phase

    @property
    def leftover(self) -> bytes:
        """The bytes that followed the negotiation; LocalProtocolError before its end."""
        if self._phase is not Phase.READY:
            raise LocalProtocolError(f"nothing can be left over {self._phase.value}")
        return bytes(self._buffer)

    @property
    def has_more(self) -> bool:
        """Whether the last call stopped at its limit: ``receive(b"")`` goes on."""
        return self._is_full

    def receive(self, data: Bytes) -> list[Event]:
        """Take bytes from the peer, split anywhere, and return the events that follow from them.

        After a ``Close`` bytes are ignored. LocalProtocolError before ``greeting()``, and after a
        ``Ready``: from then on the bytes belong to the transmission phase.
        """
        react = _RECEIVED.get(self._phase)
        if react is None:
            raise LocalProtocolError(f"bytes can't be received {self._phase.value}")
        react(self, data)
        return self._take_events()

    def tls_started(self) -> list[Event]:
        """Continue over TLS after a ``StartTLS``; all bytes from now on came through it."""
        if self._phase is not Phase.STARTING_TLS:
            raise LocalProtocolError(f"TLS can't have been started {self._phase.value}")
        self._phase = Phase.HAGGLING
        self._encrypted()
        return self._take_events()

    # For the roles

    def _encrypted(self) -> None:
        """Continue after TLS was started."""
        raise LocalProtocolError("this side never starts TLS")

    def _begin(self, length: int, take: Callable[[bytes], None]) -> None:
        """Expect the peer's first frame."""
        self._phase = Phase.HAGGLING
        self._expect(length, take)

    def _expect(self, length: int, take: Callable[[bytes], None]) -> None:
        """Pass the next *length* bytes to *take*, as one frame."""
        self._frame_length, self._take = length, take

    def _skip(self, length: int) -> None:
        """Discard the next *length* bytes, as they come, before the frame that is expected."""
        self._skipping = length

    def _send(self, data: bytes) -> None:
        self._told += len(data)
        self._events.append(Send(data))

    def _send_each(self, pieces: Iterator[bytes]) -> None:
        """Send *pieces* before taking another frame; each is made when it is sent."""
        self._rest = pieces

    def _start_tls(self) -> None:
        self._phase = Phase.STARTING_TLS

    def _ready(self, agreement: Agreement) -> None:
        self._phase = Phase.READY
        self._events.append(Ready(agreement))

    def _close(self, reason: str, kind: CloseKind) -> None:
        self._phase = Phase.CLOSED
        self._buffer.clear()
        self._events.append(Close(reason, kind))

    def _take_events(self) -> list[Event]:
        events, self._events, self._told = self._events, [], 0
        return events

    # The reactions of receive(), by phase

    def _take_frames(self, data: Bytes) -> None:
        self._buffer += data
        self._is_full = False
        try:
            while self._phase is Phase.HAGGLING and not self._is_full:
                if not (self._send_rest() or self._take_frame()):
                    break
                self._is_full = self._told >= ENOUGH_TOLD
        except RemoteProtocolError as error:
            self._close(str(error), CloseKind.VIOLATION)
        if self._phase is Phase.STARTING_TLS and not self._buffer:
            self._events.append(StartTLS())
        elif self._phase is Phase.STARTING_TLS:
            self._plaintext(self._buffer)  # and TLS isn't started at all

    def _plaintext(self, data: Bytes) -> None:
        # An attacker on the network could have inserted these bytes. If they were taken as received
        # through TLS, they would be trusted (proto.md, "Protocol downgrade attacks").
        if data:
            self._close("unencrypted bytes came after STARTTLS", CloseKind.VIOLATION)

    def _ignore(self, data: Bytes) -> None:
        pass

    def _send_rest(self) -> bool:
        """Send more of the answer under way, if there is one."""
        pieces, size = [], 0
        for piece in self._rest:
            pieces.append(piece)
            size += len(piece)
            if self._told + size >= ENOUGH_TOLD:
                break
        if pieces:
            self._send(b"".join(pieces))
        return bool(pieces)

    def _take_frame(self) -> bool:
        if self._skipping:
            skipped = min(self._skipping, len(self._buffer))
            del self._buffer[:skipped]
            self._skipping -= skipped
        if self._skipping or len(self._buffer) < self._frame_length:
            return False
        frame = bytes(self._buffer[: self._frame_length])
        del self._buffer[: self._frame_length]
        self._take(frame)
        return True

    def _nobody(self, frame: bytes) -> None:
        raise LocalProtocolError("a frame that nobody expects")


# The phases in which bytes can be received.
_RECEIVED: dict[Phase, Callable[[Negotiation, Bytes], None]] = {
    Phase.HAGGLING: Negotiation._take_frames,
    Phase.STARTING_TLS: Negotiation._plaintext,
    Phase.CLOSED: Negotiation._ignore,
}
