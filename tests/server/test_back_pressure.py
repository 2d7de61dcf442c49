"""A client that doesn't read, or reads slowly, or vanishes: what is held for it; who notices."""

import struct
from typing import Any

from flexmigrate.server.connection import LINGER_SECONDS
from flexmigrate.wire.constants import Command
from support.feeds import PlainFeed, open_descriptors
from support.serving import (
    SuiteBase,
    each_way,
)

SIZE = 4 << 20
READ, WRITE, FLUSH, ZERO = Command.READ, Command.WRITE, Command.FLUSH, Command.WRITE_ZEROES
LARGE = 2 << 20


class BackPressureSuite(SuiteBase):
    def test_a_client_that_does_not_read_is_not_read_from_and_holds_little(self):
        self.client.feed.read_limit = 0
        cookies = [self.client.ask(READ, 0, LARGE) for _ in range(12)]
        writes = [self.client.write(0, self.bytes[:100_000]) for _ in range(20)]
        self.bench.settle()
        taken = self.client.feed.protocol.requests_taken
        self.assertLess(taken, 10)
        self.assertGreater(self.client.feed.unread, 1_000_000)
        if self.feed is PlainFeed:
            self.assertLess(self.client.feed.transport.most_held, 600_000)
        other = self.connect()
        self.assertEqual(other.read(0, 100), self.bytes[:100])
        self.client.feed.read_limit = None
        for cookie in cookies:
            self.assertTrue(self.client.data(cookie) == self.bytes[:LARGE])
        for cookie in writes:
            self.assertEqual(self.client.error(cookie), 0)

    def test_a_reader_that_stops_and_goes_on_anywhere_gets_every_byte(self):
        cookies = [self.client.ask(READ, at, LARGE) for at in range(3)]
        for amount in (1, 15, 16, 17, 28, 40, 4096, 100_000, LARGE - 5, LARGE, 1):
            self.client.feed.read_limit = amount
            self.bench.settle()
        self.client.feed.read_limit = None
        for at, cookie in enumerate(cookies):
            self.assertTrue(self.client.data(cookie) == self.bytes[at : at + LARGE])

    def test_a_reader_that_vanishes_in_the_middle_harms_nobody(self):
        other = self.connect()
        before = open_descriptors()
        for amount in (0, 10, 100_000, LARGE + 1):
            reader = self.connect()
            reader.feed.read_limit = amount
            for _ in range(3):
                reader.ask(READ, 0, LARGE)
            self.bench.settle()
            reader.feed.vanish()
            self.assertTrue(other.read(1, LARGE) == self.bytes[1 : 1 + LARGE])
        self.bench.settle()
        self.assertEqual(open_descriptors(), before)
        self.assertEqual(len(self.served.factory.clients), 2)

    def test_one_that_vanishes_with_cold_requests_under_way_harms_nobody(self):
        other = self.connect()
        self.bench.pool.at_once = False
        self.served.image.cold = True
        for length in (100, LARGE):
            self.client.ask(READ, 0, length)
        write = self.client.write(0, b"arrives")
        self.client.ask(FLUSH)
        self.bench.settle()
        self.client.feed.vanish()
        self.bench.settle()
        self.bench.pool.at_once = True
        self.assertEqual(other.read(0, 7), b"arrives")
        self.assertEqual(self.export._under_way, 0)
        self.assertIsNotNone(write)


MANY_NAMES = [(f"{number:04d}" * 100, "") for number in range(1000)]
LIST = b"IHAVEOPT" + struct.pack(">II", 3, 0)
GO = b"IHAVEOPT" + struct.pack(">IIIH", 7, 6, 0, 0)
READ_ONE_BYTE = struct.pack(">IHHQQI", 0x25609513, 0, READ, 1, 0, 1)
LIST_ANSWER = sum(20 + 4 + len(name) for name, _ in MANY_NAMES) + 20


class NegotiatingSuite(SuiteBase):
    """Who haggles and doesn't read the answers."""

    def asking(self, said: bytes, *, reads: int | None) -> Any:
        self.served.factory.exports.names = lambda: MANY_NAMES  # type: ignore[method-assign]
        feed = self.feed(self.bench, self.served.factory)
        feed.read_limit = reads
        feed.send(struct.pack(">I", 3) + said)
        self.bench.settle()
        return feed

    def held_for(self, feed: Any) -> int:
        if self.feed is PlainFeed:
            return int(feed.transport.most_held)
        return sum(map(len, feed.transport._waiting))

    def test_little_is_held_for_it_until_it_reads(self):
        feed = self.asking(LIST * 15 + GO + READ_ONE_BYTE, reads=0)
        self.assertLess(self.held_for(feed), 300_000)
        self.assertLess(len(feed.protocol._handshake._buffer), 32_000)
        for amount in (1, 70_000, LIST_ANSWER, 500_000):
            feed.read_limit = amount
            self.bench.settle()
            self.assertLess(self.held_for(feed), 300_000)
        feed.read_limit = None
        self.bench.settle()
        self.assertGreater(len(feed.received), 15 * LIST_ANSWER)
        self.assertEqual(feed.received[-1:], self.bytes[:1])
        self.assertEqual(feed.received[-17:-13], b"\x67\x44\x66\x98")

    def test_it_agrees_only_once_it_has_read_what_came_before(self):
        feed = self.asking(LIST + GO + READ_ONE_BYTE, reads=0)
        self.assertIsNone(feed.protocol.export)
        feed.read_limit = None
        self.bench.settle()
        self.assertIsNotNone(feed.protocol.export)
        self.assertEqual(feed.received[-1:], self.bytes[:1])

    def test_its_time_is_limited_all_the_same(self):
        feed = self.asking(LIST * 10, reads=0)
        self.bench.advance(self.served.factory.limits.negotiation_seconds)
        self.bench.advance(LINGER_SECONDS)
        self.bench.settle()
        self.assertNotIn(feed.protocol, self.served.factory.clients)

    def test_it_may_vanish(self):
        feed = self.asking(LIST * 10, reads=1000)
        feed.vanish()
        self.bench.settle()
        self.assertEqual(self.connect().read(0, 1), self.bytes[:1])

    def test_others_have_their_turn_meanwhile(self):
        other = self.connect()
        feed = self.asking(LIST * 15, reads=None)
        self.assertEqual(other.read(0, 1), self.bytes[:1])
        self.assertEqual(len(feed.received), 18 + 15 * LIST_ANSWER)


each_way(NegotiatingSuite, globals())
each_way(BackPressureSuite, globals())
