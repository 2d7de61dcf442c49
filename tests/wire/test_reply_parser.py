"""The replies here are put together by hand, from the specification and not by our own encoder."""

from __future__ import annotations

import contextlib
import gc
import struct
from collections.abc import Callable, Iterable

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import LocalProtocolError, RemoteProtocolError
from flexmigrate.wire.constants import Command
from flexmigrate.wire.pending import PendingRequest
from flexmigrate.wire.reply_parser import BUFFER, DIRECT, ReplyParser

DONE = 1
NONE, DATA, HOLE, STATUS, STATUS_EXT, ERROR, ERROR_OFFSET = 0, 1, 2, 5, 6, 0x8001, 0x8002
AT = 1 << 33
TEXT = bytes(range(256)) * 4


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie) + data


def chunk(cookie: int, kind: int, payload: bytes = b"", flags: int = DONE) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(payload)) + payload


def extended(
    cookie: int, kind: int, payload: bytes = b"", flags: int = DONE, offset: int = AT
) -> bytes:
    head = struct.pack(">IHHQQQ", 0x6E8A278C, flags, kind, cookie, offset, len(payload))
    return head + payload


def content(data: bytes, offset: int = AT) -> bytes:
    return struct.pack(">Q", offset) + data


def hole(length: int, offset: int = AT) -> bytes:
    return struct.pack(">QI", offset, length)


def error(number: int, message: bytes = b"", more: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack(">IH", number, len(message) if size is None else size) + message + more


def status(context: int, *extents: tuple[int, int]) -> bytes:
    return struct.pack(">I", context) + b"".join(struct.pack(">II", *extent) for extent in extents)


def status_ext(context: int, *extents: tuple[int, int], count: int | None = None) -> bytes:
    head = struct.pack(">II", context, len(extents) if count is None else count)
    return head + b"".join(struct.pack(">QQ", *extent) for extent in extents)


class Asked:
    """A parser that awaits some requests, and what has become of them."""

    def __init__(self, style: str, **requests: dict) -> None:
        self.parser = ReplyParser(structured=style == "structured", extended=style == "extended")
        self.buffers: dict[int, bytearray] = {}
        for name, options in requests.items():
            self.expect(int(name[1:]), **options)

    def expect(
        self, cookie: int, command: Command = Command.READ, length: int = 1024, **options: object
    ) -> None:
        if command == Command.READ:
            self.buffers[cookie] = bytearray(b"\xaa" * length)
            options["view"] = memoryview(self.buffers[cookie])
        self.parser.expect(cookie, PendingRequest(command, AT, length, **options))

    def outcome(self) -> list[tuple]:
        """What was answered, in order: cookie, errno or None, data, extents."""
        return [
            (
                cookie,
                request.failure and request.failure.errno,
                bytes(self.buffers.get(cookie, b"")),
                request.extents,
            )
            for cookie, request in self.parser.take()
        ]


def feed(parser: ReplyParser, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        parser.receive(piece)


def bytewise(wire: bytes) -> list[bytes]:
    return [wire[at : at + 1] for at in range(len(wire))]


READS = {"_1": {}, "_2": {}}
WRITE = {"_1": {"command": Command.WRITE}}
QUERY = {"_1": {"command": Command.BLOCK_STATUS, "contexts": (3,), "length": 1 << 20}}

# name: (style, requests, what the server sends, outcomes)
GOOD = {
    "a simple read": ("simple", READS, simple(2, data=TEXT), [(2, None, TEXT, {})]),
    "a simple error": (
        "simple",
        READS,
        simple(2, 5) + simple(1, data=TEXT),
        [(2, 5, b"\xaa" * 1024, {}), (1, None, TEXT, {})],
    ),
    "a simple success without data": ("simple", WRITE, simple(1), [(1, None, b"", {})]),
    "simple replies among structured ones": (
        "structured",
        {**READS, "_3": {"command": Command.WRITE}},
        chunk(1, DATA, content(TEXT[:512]), 0)
        + simple(3)
        + chunk(1, DATA, content(TEXT[512:], AT + 512)),
        [(3, None, b"", {}), (1, None, TEXT, {})],
    ),
    "a simple error for a structured read": (
        "structured",
        READS,
        simple(1, 22),
        [(1, 22, b"\xaa" * 1024, {})],
    ),
    "chunks out of order, interleaved": (
        "structured",
        READS,
        chunk(1, DATA, content(TEXT[512:], AT + 512), 0)
        + chunk(2, HOLE, hole(1000), 0)
        + chunk(1, DATA, content(TEXT[:512]), 0)
        + chunk(2, DATA, content(b"x" * 24, AT + 1000))
        + chunk(1, NONE),
        [(2, None, bytes(1000) + b"x" * 24, {}), (1, None, TEXT, {})],
    ),
    "unknown chunk flags are ignored": (
        "structured",
        WRITE,
        chunk(1, NONE, flags=0xFFFF),
        [(1, None, b"", {})],
    ),
    "an error with a message, then content": (
        "structured",
        READS,
        chunk(1, ERROR, error(12, b"no memory"), 0) + chunk(1, DATA, content(TEXT)),
        [(1, 12, TEXT, {})],
    ),
    "an error at an offset": (
        "structured",
        READS,
        chunk(1, ERROR_OFFSET, error(5, b"bad sector", struct.pack(">Q", AT + 7))),
        [(1, 5, b"\xaa" * 1024, {})],
    ),
    "an unknown kind of error, with fields of its own": (
        "structured",
        WRITE,
        chunk(1, 0xFFFF, error(28, b"full", b"anything")),
        [(1, 28, b"", {})],
    ),
    "a block status": (
        "structured",
        QUERY,
        chunk(1, STATUS, status(3, (4096, 3), (8192, 0))),
        [(1, None, b"", {3: [(4096, 3), (8192, 0)]})],
    ),
    "an extended read": (
        "extended",
        READS,
        extended(1, DATA, content(TEXT[:24]), 0)
        + extended(1, HOLE, hole(1000, AT + 24), 0)
        + extended(1, NONE),
        [(1, None, TEXT[:24] + bytes(1000), {})],
    ),
    "an extended success": ("extended", WRITE, extended(1, NONE), [(1, None, b"", {})]),
    "an extended error": (
        "extended",
        WRITE,
        extended(1, ERROR, error(108)),
        [(1, 108, b"", {})],
    ),
    "an extended block status": (
        "extended",
        QUERY,
        extended(1, STATUS_EXT, status_ext(3, (4096, 1 << 40), (1 << 50, 0))),
        [(1, None, b"", {3: [(4096, 1 << 40), (1 << 50, 0)]})],
    ),
}

# name: (style, requests, what no conforming server can have sent)
BAD = {
    "no reply's magic": ("simple", WRITE, b"HTTP/1.1 400 Bad Request\r\n"),
    "a chunk where none was agreed on": ("simple", WRITE, chunk(1, NONE)),
    "an extended reply where none was agreed on": ("structured", WRITE, extended(1, NONE)),
    "a simple reply with extended headers": ("extended", WRITE, simple(1) + bytes(16)),
    "a chunk with extended headers": ("extended", WRITE, chunk(1, NONE) + bytes(12)),
    "a cookie that nobody used": ("simple", WRITE, simple(2)),
    "a second answer": ("simple", WRITE, simple(1) + simple(1)),
    "a simple answer to a structured read": ("structured", READS, simple(1, data=TEXT)),
    "a simple answer to a block status": ("structured", QUERY, simple(1)),
    "another offset than the request's": ("extended", WRITE, extended(1, NONE, offset=AT + 1)),
    "NONE with a payload": ("structured", WRITE, chunk(1, NONE, b"x")),
    "NONE that isn't the last": ("structured", WRITE, chunk(1, NONE, flags=0)),
    "an unknown chunk": ("structured", WRITE, chunk(1, 77)),
    "data without data": ("structured", READS, chunk(1, DATA, content(b""))),
    "data too short for an offset": ("structured", READS, chunk(1, DATA, b"1234567")),
    "more data than asked for": ("structured", READS, chunk(1, DATA, content(TEXT + b"x"))),
    "data at another place": ("structured", READS, chunk(1, DATA, content(TEXT, AT + 1))),
    "data for a write": ("structured", WRITE, chunk(1, DATA, content(TEXT))),
    "a hole for a write": ("structured", WRITE, chunk(1, HOLE, hole(1024))),
    "an empty hole": ("structured", READS, chunk(1, HOLE, hole(0))),
    "a hole of another layout": ("structured", READS, chunk(1, HOLE, hole(1024) + b"x")),
    "a hole over data": (
        "structured",
        READS,
        chunk(1, DATA, content(TEXT), 0) + chunk(1, HOLE, hole(1, AT + 1023)),
    ),
    "a read that ends early": ("structured", READS, chunk(1, DATA, content(TEXT[1:]))),
    "a read without content": ("structured", READS, chunk(1, NONE)),
    "a block status without status": ("structured", QUERY, chunk(1, NONE)),
    "a status without extents": ("structured", QUERY, chunk(1, STATUS, status(3))),
    "a status with half an extent": (
        "structured",
        QUERY,
        chunk(1, STATUS, status(3, (1, 0)) + b"1234"),
    ),
    "a status with another context": ("structured", QUERY, chunk(1, STATUS, status(4, (1, 0)))),
    "a short status with extended headers": (
        "extended",
        QUERY,
        extended(1, STATUS, status(3, (1, 0))),
    ),
    "a long status without": ("structured", QUERY, chunk(1, STATUS_EXT, status_ext(3, (1, 0)))),
    "a wrong count of extents": (
        "extended",
        QUERY,
        extended(1, STATUS_EXT, status_ext(3, (1, 0), (1, 0), count=1)),
    ),
    "an error without a number": ("structured", WRITE, chunk(1, ERROR, b"12345")),
    "error zero": ("structured", WRITE, chunk(1, ERROR, error(0))),
    "a message beyond its chunk": ("structured", WRITE, chunk(1, ERROR, error(5, b"m", size=2))),
    "a message over the offset": (
        "structured",
        WRITE,
        chunk(1, ERROR_OFFSET, error(5, b"m", struct.pack(">Q", AT), size=2)),
    ),
    "an error offset too short for one": ("structured", WRITE, chunk(1, ERROR_OFFSET, bytes(13))),
    "an error at an offset not asked for": (
        "structured",
        WRITE,
        chunk(1, ERROR_OFFSET, error(5, b"", struct.pack(">Q", AT - 1))),
    ),
    "a message longer than a string may be": (
        "structured",
        WRITE,
        chunk(1, ERROR, error(5, b"m" * 4097)),
    ),
}

# Announcements that are refused before a byte of what they announce has come.
TOO_LARGE = {
    "data": (READS, DATA),
    "none": (WRITE, NONE),
    "status": (QUERY, STATUS),
    "error": (WRITE, ERROR),
    "unknown error": (WRITE, 0x9999),
}


class EveryReplyHoweverItIsCut(SynchronousTestCase):
    def check(self, name: str, cut: Callable[[bytes], Iterable[bytes]]) -> None:
        style, requests, wire, outcomes = GOOD[name]
        asked = Asked(style, **requests)
        feed(asked.parser, cut(wire))
        self.assertEqual(asked.outcome(), outcomes, name)

    def test_whole(self) -> None:
        for name in GOOD:
            self.check(name, lambda wire: [wire])

    def test_byte_by_byte(self) -> None:
        for name in GOOD:
            self.check(name, bytewise)

    def test_cut_in_two_at_every_byte(self) -> None:
        for name, (_, _, wire, _) in GOOD.items():
            for at in range(1, min(len(wire), 100)):
                self.check(name, lambda wire, at=at: [wire[:at], wire[at:]])

    def test_the_beginning_of_the_next_reply_stays_buffered(self) -> None:
        for name, (style, requests, wire, outcomes) in GOOD.items():
            asked = Asked(style, **requests)
            asked.expect(99, Command.FLUSH)
            following = extended(99, NONE) if style == "extended" else simple(99)
            asked.parser.receive(wire + following[:-1])
            self.assertEqual(asked.outcome(), outcomes, name)
            asked.parser.receive(following[-1:])
            self.assertEqual(asked.outcome(), [(99, None, b"", {})], name)


class WhatNoServerMaySend(SynchronousTestCase):
    def test_is_refused_whole_and_byte_by_byte(self) -> None:
        for name, (style, requests, wire) in BAD.items():
            for pieces in ([wire], bytewise(wire)):
                asked = Asked(style, **requests)
                with self.assertRaises(RemoteProtocolError, msg=name):
                    feed(asked.parser, pieces)
                with self.assertRaises(LocalProtocolError, msg=name):
                    asked.parser.receive(b"x")

    def test_is_refused_before_it_has_come_if_it_is_too_large(self) -> None:
        for name, (requests, kind) in TOO_LARGE.items():
            for length in (2**32 - 1, 2**63 + 4, 2**64 - 1):
                asked = Asked("extended", **requests)
                head = struct.pack(">IHHQQQ", 0x6E8A278C, DONE, kind, 1, AT, length)
                with self.assertRaises(RemoteProtocolError, msg=name):
                    asked.parser.receive(head)

    def test_does_not_take_back_what_was_answered_before(self) -> None:
        asked = Asked("simple", **READS)
        self.assertRaises(RemoteProtocolError, asked.parser.receive, simple(1, 5) + bytes(16))
        self.assertEqual([answer[:2] for answer in asked.outcome()], [(1, 5)])


class Bookkeeping(SynchronousTestCase):
    def test_a_cookie_may_be_used_again_once_it_is_answered(self) -> None:
        asked = Asked("simple", **WRITE)
        self.assertRaises(LocalProtocolError, asked.expect, 1)
        asked.parser.receive(simple(1))
        asked.expect(1, Command.FLUSH)
        self.assertEqual(asked.parser.in_flight, 1)

    def test_abandoning_names_what_is_in_flight_and_lets_the_buffers_go(self) -> None:
        asked = Asked("simple", _1={"length": 4 * DIRECT}, _2={})
        asked.parser.receive(simple(1, data=b"x" * DIRECT))
        self.assertEqual(asked.parser.abandon(), [1, 2])
        self.assertEqual(asked.parser.in_flight, 0)
        for buffer in asked.buffers.values():
            buffer.append(0)  # a BufferError if anybody still held a view
        self.assertRaises(LocalProtocolError, asked.parser.receive, b"x")


class BulkData(SynchronousTestCase):
    SIZE = 1 << 20

    def received(self, style: str, wire: bytes) -> list[int]:
        """Feed as a socket does that always has enough; return the sizes of the buffers offered."""
        asked = Asked(style, _1={"length": self.SIZE})
        offered = []
        while wire:
            buffer = asked.parser.get_buffer()
            offered.append(len(buffer))
            size = min(len(buffer), len(wire))
            buffer[:size] = wire[:size]
            asked.parser.buffer_updated(size)
            wire = wire[size:]
        self.assertEqual(asked.outcome()[0][2], self.data)
        return offered

    def setUp(self) -> None:
        self.data = bytes(self.SIZE - 3) + b"end"

    def test_of_a_simple_reply_lands_in_the_readers_buffer(self) -> None:
        self.assertEqual(self.received("simple", simple(1, data=self.data)), [16, self.SIZE])

    def test_of_a_chunk_lands_in_the_readers_buffer(self) -> None:
        wire = chunk(1, DATA, content(self.data))
        self.assertEqual(self.received("structured", wire), [28, self.SIZE])

    def test_of_an_extended_chunk_lands_in_the_readers_buffer(self) -> None:
        wire = extended(1, DATA, content(self.data))
        self.assertEqual(self.received("extended", wire), [40, self.SIZE])

    def test_that_trickles_in_still_lands_there_to_the_last_byte(self) -> None:
        asked = Asked("simple", _1={"length": self.SIZE})
        asked.parser.receive(simple(1))
        left = self.SIZE
        while left:
            self.assertEqual(len(asked.parser.get_buffer()), left)
            asked.parser.buffer_updated(min(left, 10_000))
            left -= min(left, 10_000)
        self.assertEqual(len(asked.outcome()), 1)

    def test_short_replies_are_found_in_one_buffer(self) -> None:
        reads = {f"_{cookie}": {"length": 512} for cookie in range(100)}
        asked = Asked("simple", **reads)
        wire = b"".join(simple(cookie, data=bytes([cookie]) * 512) for cookie in range(100))
        buffer = asked.parser.get_buffer()
        self.assertEqual(len(buffer), BUFFER)
        buffer[: len(wire)] = wire
        asked.parser.buffer_updated(len(wire))
        self.assertEqual([answer[0] for answer in asked.outcome()], list(range(100)))


class LongStatus(SynchronousTestCase):
    def test_is_taken_piece_by_piece(self) -> None:
        extents = [(1, number % 4) for number in range(20_000)]
        asked = Asked("structured", **QUERY)
        for at in range(0, len(wire := chunk(1, STATUS, status(3, *extents))), 7_001):
            asked.parser.receive(wire[at : at + 7_001])
        self.assertEqual(asked.outcome(), [(1, None, b"", {3: extents})])


STYLES = {
    "simple": {**READS, "_3": {"command": Command.WRITE}},
    "structured": {**READS, "_3": {"command": Command.BLOCK_STATUS, "contexts": (3,)}},
    "extended": {**READS, "_3": {"command": Command.BLOCK_STATUS, "contexts": (3,)}},
}
REPLIES = st.one_of(
    st.binary(max_size=60),
    st.builds(simple, st.integers(0, 4), st.integers(0, 2), st.sampled_from([b"", TEXT])),
    st.builds(
        lambda make, cookie, kind, payload, flags: make(cookie, kind, payload, flags),
        st.sampled_from([chunk, extended]),
        st.integers(0, 4),
        st.sampled_from([NONE, DATA, HOLE, STATUS, STATUS_EXT, ERROR, ERROR_OFFSET, 9, 0x8009]),
        st.one_of(
            st.binary(max_size=40),
            st.builds(content, st.binary(max_size=1030), st.integers(AT - 1, AT + 1024)),
            st.builds(hole, st.integers(0, 1025), st.integers(AT - 1, AT + 1024)),
            st.builds(status, st.integers(2, 4), st.tuples(st.integers(0, 1025), st.just(1))),
            st.builds(error, st.integers(0, 200), st.binary(max_size=20), st.binary(max_size=9)),
        ),
        st.integers(0, 1),
    ),
)


@given(st.sampled_from(sorted(STYLES)), st.lists(REPLIES, max_size=6), st.integers(1, 2000))
def test_any_bytes_give_answers_or_the_remote_error(
    style: str, replies: list[bytes], step: int
) -> None:
    wire = b"".join(replies)
    outcomes = []
    for size in (len(wire) or 1, step):
        asked = Asked(style, **STYLES[style])
        refused = False
        try:
            for at in range(0, len(wire), size):
                asked.parser.receive(wire[at : at + size])
        except RemoteProtocolError:
            refused = True
        found = asked.outcome()
        assert len({answer[0] for answer in found}) == len(found)
        assert asked.parser.in_flight == 3 - len(found)
        outcomes.append((found, refused))
    # However the bytes are cut, the same comes of them.
    assert outcomes[0] == outcomes[1]


class Garbage(SynchronousTestCase):
    def test_wrong_extents_leave_no_view_locked_that_the_collector_stumbles_over(self) -> None:
        parser = ReplyParser(structured=True)
        parser.expect(1, PendingRequest(Command.BLOCK_STATUS, 0, 4096, contexts=(7,)))
        memory = parser.get_buffer().obj
        extents = struct.pack(">IIIII", 7, 0, 0, 512, 0)  # the first is of no bytes
        wire = struct.pack(">IHHQI", 0x668E33EF, 1, 5, 1, len(extents)) + extents
        kept = None
        try:
            parser.receive(wire)
        except RemoteProtocolError as error:
            kept = error  # and with it the frames that it came through
        self.assertIsNotNone(kept)
        views = [each for each in gc.get_objects() if type(each) is memoryview]
        for view in views:
            with contextlib.suppress(ValueError):  # somebody else's, which is released already
                if len(view) != 16 or view.obj is not memory:
                    continue
                view.release()  # raises BufferError if it is locked
