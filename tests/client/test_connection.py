from __future__ import annotations

import struct
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.client.connection import LARGEST_EFFECT
from flexmigrate.client.splitting import all_of, pieces
from flexmigrate.errors import ConnectionGone, LocalProtocolError, RequestFailed
from flexmigrate.wire.client_handshake import ClientOptions
from flexmigrate.wire.constants import TransmissionFlag
from support.served_client import (
    ALL_FLAGS,
    BLOCK_STATUS,
    CACHE,
    FLUSH,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    Request,
    ServedClient,
)

FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = 1, 2, 4, 8, 16, 32
MIB = 1 << 20
COMPACT = ClientOptions(extended=False)
CONTEXTS = ("base:allocation", "x-test:a")


def asked(served: ServedClient) -> tuple[int, int, int, int]:
    """Return command, flags, offset and length of the one request that was sent."""
    request = served.request()
    return request.command, request.flags, request.offset, request.length


class Headers(SynchronousTestCase):
    def test_carry_what_was_asked_for_in_either_layout(self) -> None:
        for wish, payload in ((COMPACT, 0), (ClientOptions(), PAYLOAD_LEN)):
            served = ServedClient(wish=wish)
            client = served.client
            for make, expected in (
                (lambda c: c.read(512, 1024), (READ, 0, 512, 1024)),
                (lambda c: c.read(0, 5, unfragmented=True), (READ, DF, 0, 5)),
                (lambda c: c.write(b"abc", 7), (WRITE, payload, 7, 3)),
                (lambda c: c.write(b"abc", 7, fua=True), (WRITE, payload | FUA, 7, 3)),
                (lambda c: c.zero(1, 2), (WRITE_ZEROES, 0, 1, 2)),
                (
                    lambda c: c.zero(1, 2, punch=False, fast=True, fua=True),
                    (WRITE_ZEROES, NO_HOLE | FAST_ZERO | FUA, 1, 2),
                ),
                (lambda c: c.trim(3, 4), (TRIM, 0, 3, 4)),
                (lambda c: c.trim(3, 4, fua=True), (TRIM, FUA, 3, 4)),
                (lambda c: c.cache(5, 6), (CACHE, 0, 5, 6)),
                (lambda c: c.flush(), (FLUSH, 0, 0, 0)),
            ):
                make(client)
                self.assertEqual(asked(served), expected)

    def test_have_a_cookie_each(self) -> None:
        served = ServedClient()
        for _ in range(100):
            served.client.flush()
        self.assertEqual(len({request.cookie for request in served.requests()}), 100)


class Reading(SynchronousTestCase):
    def check(self, served: ServedClient) -> None:
        reading = served.client.read(4096, 6)
        served.data(served.request(), b"answer")
        data = self.successResultOf(reading)
        self.assertIsInstance(data, bytearray)
        self.assertEqual(data, b"answer")

    def test_works_with_every_style_of_reply(self) -> None:
        self.check(ServedClient(oldstyle=True))
        self.check(ServedClient(wish=ClientOptions(structured=False)))
        self.check(ServedClient(wish=COMPACT))
        self.check(ServedClient())

    def test_into_a_buffer_leaves_the_data_there(self) -> None:
        served = ServedClient()
        for buffer in (bytearray(6), memoryview(bytearray(6))):
            reading = served.client.read(0, 6, buffer)
            served.data(served.request(), b"answer")
            self.assertEqual(bytes(self.successResultOf(reading)), b"answer")
            self.assertEqual(bytes(buffer), b"answer")

    def test_gives_a_bytearray_that_its_receiver_may_resize(self) -> None:
        served = ServedClient()
        reading = served.client.read(0, 6)
        reading.addCallback(lambda data: data.append(0))  # a BufferError if a view were left
        served.data(served.request(), b"answer")
        self.assertIsNone(self.successResultOf(reading))

    def test_refuses_a_buffer_that_does_not_fit(self) -> None:
        served = ServedClient()
        for buffer in (bytearray(5), bytearray(7), bytearray(), memoryview(b"123456")):
            self.failureResultOf(served.client.read(0, 6, buffer), LocalProtocolError)
        self.assertEqual(served.requests(), [])

    def test_of_more_than_the_server_sends_at_once_is_put_together(self) -> None:
        served = ServedClient(block_sizes=(512, 4096, 10_000))  # so 9728 at a time
        reading = served.client.read(512, 20_480)
        requests = served.requests()
        self.assertEqual(
            [(request.offset, request.length) for request in requests],
            [(512, 9728), (10_240, 9728), (19_968, 1024)],
        )
        for number, request in reversed(list(enumerate(requests))):
            self.assertNoResult(reading)
            served.data(request, bytes([number + 1]) * request.length)
        data = self.successResultOf(reading)
        self.assertEqual(data, b"\1" * 9728 + b"\2" * 9728 + b"\3" * 1024)

    def test_that_fails_in_part_fails_only_when_nothing_can_land_in_the_buffer(self) -> None:
        served = ServedClient(block_sizes=(1, 512, 512))
        buffer = bytearray(1024)
        reading = served.client.read(0, 1024, buffer)
        first, second = served.requests()
        served.error(first, 5)
        self.assertNoResult(reading)
        served.data(second, b"x" * 512)
        self.assertEqual(self.failureResultOf(reading, RequestFailed).value.errno, 5)


class FileOfBytes:
    """A source for write_from, in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fd = -1

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


class OldOrder(SynchronousTestCase):
    def test_of_a_write_works_and_is_warned_of(self) -> None:
        served = ServedClient(wish=COMPACT)
        old: Any = served.client
        old.write(7, b"abc")
        self.assertEqual(asked(served), (WRITE, 0, 7, 3))
        warned = self.flushWarnings()
        self.assertEqual([each["category"] for each in warned], [DeprecationWarning])
        self.assertIn("write(data, offset)", warned[0]["message"])


class Writing(SynchronousTestCase):
    def test_sends_the_data_behind_the_header(self) -> None:
        for wish in (COMPACT, ClientOptions()):
            served = ServedClient(wish=wish)
            for data in (b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"xabc")[1:]):
                writing = served.client.write(data, 9)
                request = served.request()
                self.assertEqual(request.payload, b"abc")
                served.ok(request)
                self.assertIsNone(self.successResultOf(writing))

    def test_from_a_file_sends_what_stands_at_the_same_offset(self) -> None:
        served = ServedClient(size=1 << 16, block_sizes=(1, 512, 512))
        source = FileOfBytes(bytes(range(256)) * 4)
        writing = served.client.write_from(source, 100, 700)
        requests = served.requests()
        self.assertEqual([request.length for request in requests], [512, 188])
        self.assertEqual(b"".join(request.payload for request in requests), source.data[100:800])
        for request in requests:
            served.ok(request)
        self.assertIsNone(self.successResultOf(writing))

    def test_of_a_lot_waits_for_the_server_to_take_it(self) -> None:
        served = ServedClient(block_sizes=(1, 512, 512))
        served.transport.producer.pauseProducing()
        sent: list[Request] = []
        writing = served.client.write(b"x" * 1500, 0)
        self.assertEqual(served.client.requests_in_flight, 1)
        while len(sent) < 3:
            served.transport.producer.resumeProducing()
            sent += served.requests()
        self.assertEqual([request.length for request in sent], [512, 512, 476])
        served.error(sent[1], 28)
        served.ok(sent[2])
        self.assertNoResult(writing)
        served.ok(sent[0])
        self.assertEqual(self.failureResultOf(writing, RequestFailed).value.errno, 28)

    def test_of_a_lot_ends_with_the_connection(self) -> None:
        served = ServedClient(block_sizes=(1, 512, 512))
        served.transport.producer.pauseProducing()
        writing = served.client.write(b"x" * 1500, 0)
        served.lose()
        self.failureResultOf(writing, ConnectionGone)


class LargeEffects(SynchronousTestCase):
    def test_are_divided_where_one_request_cannot_say_them(self) -> None:
        served = ServedClient()
        for make in (served.client.zero, served.client.trim):
            doing = make(0, 2 * LARGEST_EFFECT + 512)
            requests = served.requests()
            self.assertEqual(
                [(request.offset, request.length) for request in requests],
                [(0, LARGEST_EFFECT), (LARGEST_EFFECT, LARGEST_EFFECT), (2 * LARGEST_EFFECT, 512)],
            )
            for request in requests:
                served.ok(request)
            self.assertIsNone(self.successResultOf(doing))

    def test_of_cache_keep_to_the_size_of_a_payload(self) -> None:
        served = ServedClient()
        served.client.cache(0, 40 * MIB)
        self.assertEqual([request.length for request in served.requests()], [32 * MIB, 8 * MIB])


class BlockStatus(SynchronousTestCase):
    def served(
        self, wish: ClientOptions | None = None, payload: bool = False, size: int = MIB
    ) -> None:
        flags = ALL_FLAGS | (TransmissionFlag.BLOCK_STATUS_PAYLOAD if payload else 0)
        wish = wish or ClientOptions(contexts=CONTEXTS)
        self.server = ServedClient(wish=wish, flags=flags, size=size, contexts=CONTEXTS)
        self.client = self.server.client
        self.ids = {name: number for number, name in self.client.agreement.contexts}

    def answer(self, request: Request, name: str, *extents: tuple[int, int], last: int) -> None:
        if self.server.extended:
            payload = struct.pack(">II", self.ids[name], len(extents))
            payload += b"".join(struct.pack(">QQ", *extent) for extent in extents)
            self.server.chunk(request, 6, payload, last)
        else:
            payload = struct.pack(">I", self.ids[name])
            payload += b"".join(struct.pack(">II", *extent) for extent in extents)
            self.server.chunk(request, 5, payload, last)

    def test_comes_by_the_contexts_names(self) -> None:
        for extended in (False, True):
            self.served(ClientOptions(extended=extended, contexts=CONTEXTS))
            asking = self.client.block_status(4096, 8192)
            request = self.server.request()
            self.assertEqual(request[:2], (0, BLOCK_STATUS))
            self.assertEqual(request[3:], (4096, 8192, b""))
            self.answer(request, "x-test:a", (8192, 5), last=0)
            self.answer(request, "base:allocation", (4096, 3), (4096, 0), last=1)
            self.assertEqual(
                self.successResultOf(asking),
                {"base:allocation": [(4096, 3), (4096, 0)], "x-test:a": [(8192, 5)]},
            )

    def test_ends_where_the_export_does(self) -> None:
        self.served(ClientOptions(contexts=CONTEXTS[:1]), size=8192)
        asking = self.client.block_status(4096, 4096)
        self.answer(self.server.request(), CONTEXTS[0], (512, 0), (1 << 60, 3), last=1)
        self.assertEqual(self.successResultOf(asking), {CONTEXTS[0]: [(512, 0), (3584, 3)]})

    def test_of_one_extent_asks_for_one(self) -> None:
        self.served()
        self.client.block_status(0, 4096, req_one=True)
        self.assertEqual(self.server.request().flags, REQ_ONE)

    def test_of_some_contexts_asks_for_these_where_the_server_can_be_told(self) -> None:
        self.served(payload=True)
        asking = self.client.block_status(4096, 8192, contexts=["x-test:a"], req_one=True)
        request = self.server.request()
        self.assertEqual(request.flags, PAYLOAD_LEN | REQ_ONE)
        self.assertEqual(request.length, 12)
        self.assertEqual(request.payload, struct.pack(">QI", 8192, self.ids["x-test:a"]))
        self.answer(request, "x-test:a", (512, 1), last=1)
        self.assertEqual(self.successResultOf(asking), {"x-test:a": [(512, 1)]})

    def test_of_some_contexts_picks_them_out_where_it_cannot(self) -> None:
        self.served()
        asking = self.client.block_status(0, 8192, contexts=["x-test:a"])
        request = self.server.request()
        self.assertEqual((request.flags, request.length), (0, 8192))
        self.answer(request, "base:allocation", (8192, 0), last=0)
        self.answer(request, "x-test:a", (8192, 1), last=1)
        self.assertEqual(self.successResultOf(asking), {"x-test:a": [(8192, 1)]})

    def test_of_a_context_that_was_not_negotiated_is_refused(self) -> None:
        self.served()
        asking = self.client.block_status(0, 8192, contexts=["x-test:b"])
        self.failureResultOf(asking, LocalProtocolError)

    def test_without_any_context_is_refused(self) -> None:
        self.served(ClientOptions())
        self.failureResultOf(self.client.block_status(0, 4096), LocalProtocolError)

    def test_of_more_than_a_request_can_say_asks_for_the_beginning(self) -> None:
        self.served(size=1 << 40)
        self.client.block_status(0, 1 << 40)
        self.assertEqual(self.server.request().length, LARGEST_EFFECT)


class MistakesOfOurs(SynchronousTestCase):
    def ranges(self, served: ServedClient, offset: int, length: int) -> list[Deferred]:
        client = served.client
        return [
            client.read(offset, length),
            client.write(bytes(max(length, 0)), offset),
            client.write_from(FileOfBytes(b""), offset, length),
            client.zero(offset, length),
            client.trim(offset, length),
            client.cache(offset, length),
            client.block_status(offset, length),
        ]

    def refused(self, served: ServedClient, doings: list[Deferred]) -> None:
        for doing in doings:
            self.failureResultOf(doing, LocalProtocolError)
        self.assertEqual(served.requests(), [])

    def test_outside_the_export_never_reach_the_server(self) -> None:
        wish = ClientOptions(contexts=CONTEXTS[:1])
        served = ServedClient(size=MIB, wish=wish)
        for offset, length in (
            (MIB, 1),
            (MIB - 1, 2),
            (0, MIB + 1),
            (2**64 - 4096, 4096),
            (-1, 2),
            (0, 0),
        ):
            self.refused(served, self.ranges(served, offset, length))
        self.refused(served, [served.client.read(0, -1), served.client.trim(5, -5)])

    def test_in_parts_of_blocks_never_reach_the_server(self) -> None:
        served = ServedClient(
            block_sizes=(512, 4096, MIB), wish=ClientOptions(contexts=CONTEXTS[:1])
        )
        for offset, length in ((1, 512), (0, 511), (256, 256)):
            self.refused(served, self.ranges(served, offset, length))

    def test_that_the_server_did_not_offer_never_reach_it(self) -> None:
        served = ServedClient(flags=TransmissionFlag.HAS_FLAGS, oldstyle=True)
        client = served.client
        self.refused(
            served,
            [
                client.flush(),
                client.trim(0, 512),
                client.zero(0, 512),
                client.cache(0, 512),
                client.write(b"x", 0, fua=True),
                client.read(0, 1, unfragmented=True),
                client.block_status(0, 512),
            ],
        )

    def test_on_a_read_only_export_never_reach_it(self) -> None:
        served = ServedClient(flags=ALL_FLAGS | TransmissionFlag.READ_ONLY)
        client = served.client
        self.refused(served, [client.write(b"x", 0), client.trim(0, 1), client.zero(0, 1)])

    def test_do_reach_it_without_the_check(self) -> None:
        served = ServedClient(size=MIB, strict=False, flags=TransmissionFlag.HAS_FLAGS)
        served.client.trim(MIB, 1)
        self.assertEqual(asked(served), (TRIM, 0, MIB, 1))


class Dividing(SynchronousTestCase):
    def test_covers_a_range_exactly(self) -> None:
        self.assertEqual(list(pieces(10, 25, 10)), [(10, 10), (20, 10), (30, 5)])
        self.assertEqual(list(pieces(10, 10, 10)), [(10, 10)])
        self.assertEqual(list(pieces(10, 0, 10)), [])

    def test_puts_results_together_in_order(self) -> None:
        answers: list[Deferred[int]] = [Deferred() for _ in range(3)]
        together = all_of(answers)
        for number in (2, 0, 1):
            self.assertNoResult(together)
            answers[number].callback(number)
        self.assertEqual(self.successResultOf(together), [0, 1, 2])
