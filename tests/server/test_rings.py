"""Cold reads that the kernel's ring waits for, and no thread: the same answers."""

import errno
import os
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.kernel.io_uring import Ring
from flexmigrate.server.commands import MAX_UNDER_WAY
from flexmigrate.wire.constants import Command
from support.feeds import PlainFeed, StreamFeed
from support.serving import EXTENDED, SIMPLE, STYLES, Served

READ = Command.READ
BLOCK = 4096
BLOCKS = 2 * MAX_UNDER_WAY


class ColdReads(SynchronousTestCase):
    def setUp(self):
        try:
            Ring().close()
        except OSError as error:
            raise SkipTest(f"no io_uring here: {error}") from None
        self.bytes = os.urandom(BLOCKS * BLOCK)
        self.served = Served(self.bytes, ring=True)
        self.addCleanup(self.close)
        self.served.image.cold = True
        # Threads answer nothing here.
        self.served.bench.pool.at_once = False
        self.served.image.faults["read"] = ZeroDivisionError("a thread reads")

    def close(self):
        self.served.close()

    def ask(self, client, blocks, length=BLOCK):
        """Ask for blocks in one packet."""
        wire, cookies = b"", []
        for block in blocks:
            wire += client.request(READ, block * BLOCK, length)
            cookies.append(client.last)
        client.feed.send(wire)
        return cookies

    def wait(self):
        """Wait until nothing waits for the disk."""
        self.served.bench.settle()
        while self.served.storage.pending:
            self.served.bench.reactor.iterate(0.01)
            self.served.bench.settle()

    def block(self, number, length=BLOCK):
        return self.bytes[number * BLOCK : number * BLOCK + length]

    def test_have_the_bytes_that_were_asked_for_in_every_style(self):
        for feed in (PlainFeed, StreamFeed):
            for wish in STYLES.values():
                client = self.served.client(feed, wish)
                cookies = self.ask(client, range(0, BLOCKS, 5))
                self.wait()
                for number, cookie in zip(range(0, BLOCKS, 5), cookies, strict=True):
                    self.assertEqual(client.data(cookie), self.block(number))

    def test_more_than_may_be_under_way_come_one_after_the_other(self):
        clients = [self.served.client(StreamFeed, SIMPLE) for _ in range(2)]
        self.served.image.faults.clear()  # there is no room for two clients' in one ring
        self.served.bench.pool.at_once = True
        asked = [(client, self.ask(client, range(BLOCKS))) for client in clients]
        self.wait()
        for client, cookies in asked:
            for number, cookie in enumerate(cookies):
                self.assertEqual(client.data(cookie), self.block(number))
        self.assertEqual(self.served.export._under_way, 0)

    def test_holes_are_told_as_holes_where_that_can_be_told(self):
        os.truncate(self.served.path, 0)
        os.truncate(self.served.path, len(self.bytes))
        self.served.image._may_have_holes = True
        client = self.served.client(StreamFeed, EXTENDED)
        (cookie,) = self.ask(client, [1])
        self.wait()
        self.assertEqual(client.data(cookie), bytes(BLOCK))

    def test_what_was_cut_off_the_file_is_an_error_and_the_others_are_answered(self):
        client = self.served.client(StreamFeed, EXTENDED)
        os.truncate(self.served.path, BLOCK)
        self.served.image.faults.clear()
        self.served.bench.pool.at_once = True
        good, bad = self.ask(client, [0, 7])
        self.wait()
        self.assertEqual(client.data(good), self.block(0))
        self.assertEqual(client.error(bad), errno.EIO)

    def test_a_client_that_vanishes_harms_nobody(self):
        gone, other = (self.served.client(StreamFeed, SIMPLE) for _ in range(2))
        self.ask(gone, range(MAX_UNDER_WAY // 2))
        cookies = self.ask(other, range(MAX_UNDER_WAY // 2))
        self.served.bench.turn()
        gone.feed.vanish()
        self.wait()
        for number, cookie in enumerate(cookies):
            self.assertEqual(other.data(cookie), self.block(number))
        self.assertEqual(self.served.export._under_way, 0)
