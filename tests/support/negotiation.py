"""Negotiations driven with byte strings: a directory, the ways to cut a stream, and a joined pair.

The frames here are packed by hand, from the specification and not from our own layouts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flexmigrate.wire.agreement import Close, Event, ExportInfo, Ready, Send, StartTLS
from flexmigrate.wire.client_options import ClientNegotiation
from flexmigrate.wire.constants import TransmissionFlag
from flexmigrate.wire.engine import Negotiation, Phase
from flexmigrate.wire.handshake import ServerHandshake

CAN = TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA | TransmissionFlag.SEND_TRIM
TOLD = CAN | TransmissionFlag.HAS_FLAGS
DIRTY = "flexmigrate:dirty"
DISK = ExportInfo("disk", 3 << 30, CAN, "the first disk", contexts=("base:allocation", DIRTY))
SPARE = ExportInfo("spare", 512, CAN | TransmissionFlag.READ_ONLY, block_sizes=(512, 4096, 1 << 20))


@dataclass
class Exports:
    """A directory of *exports*, in order."""

    exports: Iterable[ExportInfo] = (DISK, SPARE)
    may_list: bool = True

    def find(self, name: str) -> ExportInfo | None:
        return next((export for export in self.exports if export.name == name), None)

    def names(self) -> Iterable[tuple[str, str]]:
        return [(export.name, export.description) for export in self.exports]

    def listable(self) -> bool:
        return self.may_list


def option(number: int, data: bytes = b"") -> bytes:
    """Pack an option."""
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def reply(number: int, kind: int, data: bytes = b"") -> bytes:
    """Pack a reply of the type *kind* to the option *number*."""
    return struct.pack(">QIII", 0x3E889045565A9, number, kind, len(data)) + data


def error(number: int, code: int) -> bytes:
    """Pack the head of an error reply up to its type; *code* as in 2^31 + *code*."""
    return struct.pack(">QII", 0x3E889045565A9, number, (1 << 31) + code)


def counted(text: bytes) -> bytes:
    """Pack a string behind its 32-bit length."""
    return struct.pack(">I", len(text)) + text


def wanted(name: bytes, *infos: int) -> bytes:
    """Pack the data of INFO or GO."""
    return counted(name) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def queries(name: bytes, *texts: bytes) -> bytes:
    """Pack the data of LIST_META_CONTEXT or SET_META_CONTEXT."""
    return counted(name) + struct.pack(">I", len(texts)) + b"".join(map(counted, texts))


def greeted(flags: bytes = b"\0\0\0\3", **kwargs: Any) -> ServerHandshake:
    """Return a server that has sent its greeting, and been answered with *flags*."""
    server = ServerHandshake(**{"directory": Exports(), **kwargs})
    server.greeting()
    server.receive(flags)
    return server


def cuts(wire: bytes) -> Iterator[list[bytes]]:
    """Cut *wire* in every way that matters: not at all, at each byte, once at each place."""
    yield [wire]
    yield [bytes([byte]) for byte in wire]
    step = max(1, len(wire) // 64)  # frames of zeroes need not be cut at all their places
    for place in range(1, len(wire), step):
        yield [wire[:place], wire[place:]]


def feed(machine: Negotiation, pieces: Iterable[bytes]) -> list[Event]:
    """Feed *pieces* one by one, and return all the events."""
    return [event for piece in pieces for event in taken(machine, piece)]


def taken(machine: Negotiation, data: bytes) -> Iterator[Event]:
    """Feed *data*, and yield all that follows, as to a peer that reads its answers."""
    yield from machine.receive(data)
    while machine.has_more:
        yield from machine.receive(b"")


def check_feeds(
    new: Callable[[], Negotiation],
    wire: bytes,
    expected: Sequence[Event],
    behind: bytes = b"\x25\x60",
) -> None:
    """Check that *wire* gives the same events however it is cut, and with bytes trailing."""
    for pieces in cuts(wire):
        assert feed(new(), pieces) == list(expected), pieces
    machine = new()
    assert machine.receive(wire + behind) == list(expected)
    if machine.phase is Phase.READY:
        assert machine.leftover == behind


def sent(events: Iterable[Event]) -> bytes:
    """Join the bytes that *events* send."""
    return b"".join(event.data for event in events if isinstance(event, Send))


def last_close(events: list[Event]) -> Close:
    """Return the `Close` that must end *events*."""
    assert events, "nothing happened"
    assert isinstance(events[-1], Close), events
    return events[-1]


@dataclass
class Pair:
    """A client and a server joined without a transport; what each of them said is kept."""

    client: ClientNegotiation
    server: ServerHandshake
    client_events: list[Event] = field(default_factory=list)
    server_events: list[Event] = field(default_factory=list)
    piece: int = 1 << 20

    def run(self) -> Pair:
        """Let them talk until both have nothing more to say."""
        self.server_events += (said := self.server.greeting())
        to_client, to_server = sent(said), b""
        while to_client or to_server:
            to_server += self._deliver(self.client, to_client, self.client_events)
            to_client = self._deliver(self.server, to_server, self.server_events)
            to_server = self._start_tls()
        return self

    def _deliver(self, machine: Negotiation, data: bytes, log: list[Event]) -> bytes:
        answered = b""
        for at in range(0, len(data), self.piece):
            events = machine.receive(data[at : at + self.piece])
            log += events
            answered += sent(events)
        return answered

    def _start_tls(self) -> bytes:
        """Start TLS at the client, once both sides have come to it."""
        if self.client.phase is not Phase.STARTING_TLS:
            return b""
        if self.server.phase is Phase.STARTING_TLS:
            self.server_events += self.server.tls_started()
        self.client_events += (said := self.client.tls_started())
        return sent(said)

    def agreed(self) -> tuple[Ready, Ready]:
        """Return the `Ready` of client and server, which must be their last events."""
        ends = self.client_events[-1], self.server_events[-1]
        assert isinstance(ends[0], Ready), self.client_events
        assert isinstance(ends[1], Ready), self.server_events
        return ends[0], ends[1]


def is_event(event: object) -> bool:
    """Tell whether *event* is something that a server's negotiation may say."""
    return isinstance(event, (Send, StartTLS, Ready, Close))
