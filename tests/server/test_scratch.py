"""Connections share the buffer that they receive into: what one brings about for another must not
touch what stands there.
"""

import os

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.server.holds import Holds
from flexmigrate.wire.constants import Command
from support.feeds import PlainFeed, StreamFeed
from support.serving import Served

BLOCK = 4096


class Meddler:
    """An observer that does something at each mark."""

    def __init__(self):
        self.then = []

    def mark(self, offset, length):
        if self.then:
            self.then.pop(0)()


class Sharing:
    def setUp(self):
        self.served = Served(bytes(64 * BLOCK))
        self.addCleanup(self.served.close)
        self.served.export.observer = self.meddler = Meddler()
        self.mine = self.served.client(self.feed)
        (self.my_connection,) = self.served.factory.clients
        self.other = self.served.client(self.feed)
        (self.other_connection,) = set(self.served.factory.clients) - {self.my_connection}

    def send_writes(self, client, blocks):
        """Have writes of a block each come in one piece; return what they are to write."""
        written = {}
        stream = b""
        for block in blocks:
            written[block] = os.urandom(BLOCK)
            stream += client.request(Command.WRITE, block * BLOCK, payload=written[block])
        client.feed.send(stream)
        self.served.bench.settle()
        return written

    def assert_written(self, written):
        content = self.served.content()
        for block, expected in written.items():
            found = content[block * BLOCK : (block + 1) * BLOCK]
            self.assertTrue(found == expected, block)

    def test_who_is_let_go_on_in_the_midst_of_another_s_requests_waits_for_their_end(self):
        self.meddler.then = [lambda: self.other_connection.hold(Holds.THROTTLED)]
        written = self.send_writes(self.other, range(8))
        self.assertEqual(self.meddler.then, [])
        self.meddler.then = [lambda: self.other_connection.release(Holds.THROTTLED)]
        written |= self.send_writes(self.mine, range(20, 24))
        self.assertEqual(self.meddler.then, [])
        self.assert_written(written)
        written = self.send_writes(self.other, range(30, 34))
        written |= self.send_writes(self.mine, range(40, 44))
        self.assert_written(written)


class Sharing_plain(Sharing, SynchronousTestCase):  # noqa: N801
    feed = PlainFeed


class Sharing_stream(Sharing, SynchronousTestCase):  # noqa: N801
    feed = StreamFeed
