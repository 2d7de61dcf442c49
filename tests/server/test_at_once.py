"""What a device answers at once, though it is asked as if it would take its time."""

import random

from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.server.commands import MAX_UNDER_WAY
from flexmigrate.wire.constants import Command
from support.feeds import PlainFeed, StreamFeed
from support.serving import Served

BLOCK = 16  # bytes: so little that no reply has to wait for the client
SIZE = 4096 * BLOCK


class AtOnce:
    def setUp(self):
        self.content = random.Random(3).randbytes(SIZE)
        self.served = Served(self.content)
        self.addCleanup(self.served.close)
        self.served.image.cold = True
        self.client = self.served.client(self.feed)

    def read_short(self, wanted, answer, *, whole, asker=None):
        """As FileStorage's, by the time it returns."""
        answer([(each, self.content[each[1] : each[1] + each[2]]) for each in wanted])

    def ask(self, blocks):
        """Have as many reads come in one piece; return what finds their answers."""
        asked = {}
        stream = b""
        for block in blocks:
            stream += self.client.request(Command.READ, block * BLOCK, BLOCK)
            asked[self.client.last] = block
        return stream, asked

    def assert_read(self, asked):
        for cookie, block in asked.items():
            found = self.client.data(cookie)
            self.assertTrue(found == self.content[block * BLOCK : (block + 1) * BLOCK], block)

    def test_more_reads_than_may_be_under_way_are_all_answered(self):
        self.served.storage.read_short = self.read_short
        stream, asked = self.ask(range(3 * MAX_UNDER_WAY + 5))
        self.client.feed.send(stream)
        self.assert_read(asked)

    def test_what_ends_at_once_behind_as_many_as_may_be_under_way_holds_nobody(self):
        self.served.storage.flush = lambda: succeed(None)
        self.served.bench.pool.at_once = False
        stream, asked = self.ask(range(MAX_UNDER_WAY - 1))
        stream += self.client.request(Command.FLUSH)
        flush = self.client.last
        more, others = self.ask(range(MAX_UNDER_WAY, 2 * MAX_UNDER_WAY))
        self.client.feed.send(stream + more)
        for _ in range(3):  # those before the flush, what was held because of them, and the rest
            self.served.bench.settle()
            while self.served.bench.pool.waiting:
                self.served.bench.pool.work()
        self.assertEqual(self.client.error(flush), 0)
        self.assert_read({**asked, **others})


class Plain(AtOnce, SynchronousTestCase):
    feed = PlainFeed


class Stream(AtOnce, SynchronousTestCase):
    feed = StreamFeed
