"""TLS records that arrive together are served together (``net.interfaces.IGatheringProtocol``)."""

import random

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.server.payloads import MOST_OF_NEW
from flexmigrate.wire.constants import Command
from support.feeds import PlainFeed
from support.serving import Served

RECORD = 16384
LENGTH = 1 << 20


class GatheringTests(SynchronousTestCase):
    def setUp(self):
        self.served = Served(size=2 * LENGTH)
        self.addCleanup(self.served.close)
        self.client = self.served.client(PlainFeed)
        self.protocol = self.client.feed.protocol
        self.payload = random.Random(5).randbytes(LENGTH)
        self.written = self.client.request(Command.WRITE, 0, payload=self.payload)
        self.cookie = self.client.last

    def records(self, data):
        """Let *data* come as TLS brings it."""
        for at in range(0, len(data), RECORD):
            self.protocol.dataReceived(data[at : at + RECORD])

    def pieces(self):
        return [length for name, _, length in self.served.image.done if name == "write"]

    def test_what_is_gathered_is_served_when_that_was_all_and_in_its_order(self):
        read = self.client.request(Command.READ, 100, 1000)
        self.protocol.gather()
        self.records(self.written + read)
        self.assertEqual(self.pieces(), [])
        self.protocol.deliver()
        self.assertEqual(self.client.error(self.cookie), 0)
        self.assertEqual(self.client.data(self.client.last), self.payload[100:1100])
        self.assertTrue(self.served.content()[:LENGTH] == self.payload)
        self.assertLess(len(self.pieces()), 2 * LENGTH // MOST_OF_NEW)

    def test_one_by_one_they_are_as_many_writes(self):
        self.records(self.written)
        self.assertEqual(self.client.error(self.cookie), 0)
        self.assertGreaterEqual(len(self.pieces()), LENGTH // RECORD)

    def test_lots_that_end_anywhere_make_one_stream(self):
        draw, stream = random.Random(6), self.written
        while stream:
            lot = draw.randrange(1, 200_000)
            self.protocol.gather()
            self.records(stream[:lot])
            self.protocol.deliver()
            stream = stream[lot:]
        self.assertEqual(self.client.error(self.cookie), 0)
        self.assertTrue(self.served.content()[:LENGTH] == self.payload)

    def test_nothing_need_come(self):
        self.protocol.gather()
        self.protocol.deliver()
        self.records(self.written)
        self.assertEqual(self.client.error(self.cookie), 0)

    def test_what_comes_behind_the_end_is_not_served(self):
        self.protocol.gather()
        self.records(self.written)
        self.protocol.end("the test ends it")
        self.protocol.deliver()
        self.assertEqual(self.pieces(), [])
