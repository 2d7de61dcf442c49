"""Parking at every moment: nothing is lost, nothing is answered, nobody is closed."""

import random

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.wire.constants import Command
from support.serving import (
    FEEDS,
    Recorder,
    Served,
    SuiteBase,
    each_way,
)

SIZE = 4 << 20
READ, WRITE, FLUSH, ZERO = Command.READ, Command.WRITE, Command.FLUSH, Command.WRITE_ZEROES
LARGE = 2 << 20


class ParkingSuite(SuiteBase):
    def park(self):
        parked = []
        self.export.park().addCallback(parked.append)
        return parked

    def test_parked_requests_wait_and_are_answered_once_it_is_over(self):
        self.assertEqual(self.park(), [None])
        write = self.client.write(0, b"later")
        read = self.client.ask(READ, 0, 5)
        self.assertFalse(self.client.is_answered(write))
        self.assertEqual(self.served.image.done, [])
        self.export.unpark()
        self.assertEqual(self.client.error(write), 0)
        self.assertEqual(self.client.data(read), b"later")

    def test_a_client_that_comes_meanwhile_waits_too(self):
        self.park()
        late = self.connect()
        cookie = late.ask(READ, 0, 5)
        self.assertFalse(late.is_answered(cookie))
        self.export.unpark()
        self.assertEqual(late.data(cookie), self.bytes[:5])

    def test_parking_in_the_middle_of_a_long_write_keeps_what_was_written_marked(self):
        recorder = self.export.observer = Recorder()
        data = random.Random(2).randbytes(1_000_000)
        request = self.client.request(WRITE, 100, payload=data)
        for cut in (1, 30, 300_000, 999_999):
            self.client.feed.send(request[:cut])
            self.bench.settle()
            self.assertEqual(self.park(), [None])
            marked = sum(length for _, _, length in recorder.events)
            done = sum(length for _, _, length in self.served.image.done)
            self.assertEqual(marked, done)
            self.client.feed.send(request[cut:])
            self.bench.settle()
            self.assertEqual(sum(length for _, _, length in self.served.image.done), done)
            self.export.unpark()
            self.assertEqual(self.client.error(self.client.last), 0)
            self.assertTrue(self.client.read(100, len(data)) == data)
            recorder.events.clear()
            self.served.image.done.clear()
            data = data[1:] + data[:1]
            request = self.client.request(WRITE, 100, payload=data)
        self.client.feed.send(request)
        self.bench.settle()

    def test_parking_waits_for_what_is_under_way_and_that_is_answered(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        recorder = self.export.observer = Recorder()
        cookies = [
            self.client.write(0, b"cold"),
            self.client.ask(READ, 100, 100),
            self.client.ask(READ, 100, LARGE),
            self.client.ask(ZERO, 4096, 4096),
            self.client.ask(FLUSH),
        ]
        self.bench.settle()
        parked = self.park()
        later = self.client.ask(READ, 0, 1)
        while self.bench.pool.waiting:
            self.assertEqual(parked, [])
            self.bench.pool.work()
            self.bench.settle()
        self.assertEqual(parked, [None])
        marks = [("marked", 0, 4), ("marked", 4096, 4096)]
        self.assertEqual(sorted(recorder.events), marks)
        for cookie in cookies:
            self.assertEqual(self.client.error(cookie), 0)
        self.assertFalse(self.client.is_answered(later))
        self.bench.pool.at_once = True
        self.export.unpark()
        self.assertEqual(self.client.data(later), b"c")

    def test_parking_waits_for_a_piece_of_a_long_write(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        cookie = self.client.write(0, b"p" * 1_000_000)
        self.bench.settle()
        parked = self.park()
        self.assertEqual(parked, [])
        self.bench.pool.work()
        self.bench.settle()
        self.assertEqual(parked, [None])
        self.assertFalse(self.bench.pool.waiting)
        self.export.unpark()
        self.bench.pool.at_once = True
        self.assertEqual(self.client.error(cookie), 0)
        self.assertEqual(self.served.content()[:1_000_000], b"p" * 1_000_000)

    def test_a_large_read_that_is_being_sent_goes_on_while_parked(self):
        self.client.feed.read_limit = 1000
        cookie = self.client.ask(READ, 0, LARGE)
        self.bench.settle()
        self.assertEqual(self.park(), [None])
        self.client.feed.read_limit = None
        self.assertTrue(self.client.data(cookie) == self.bytes[:LARGE])
        self.export.unpark()
        self.assertEqual(self.client.read(0, 1), self.bytes[:1])

    def test_a_client_may_vanish_while_parked(self):
        other = self.connect()
        self.park()
        self.client.write(0, b"never")
        self.bench.settle()
        self.client.feed.vanish()
        self.bench.settle()
        self.export.unpark()
        self.assertEqual(len(other.read(0, 5)), 5)

    def test_parking_and_unparking_at_any_moment_changes_nothing_but_time(self):
        rng = random.Random(5)
        mine = bytearray(self.bytes)
        wire = bytearray()
        reads = []
        for _ in range(60):
            offset, length = rng.randrange(SIZE - 70_000), rng.choice((1, 512, 4096, 70_000))
            if rng.random() < 0.6:
                data = rng.randbytes(length)
                mine[offset : offset + length] = data
                wire += self.client.request(WRITE, offset, payload=data)
            else:
                wire += self.client.request(READ, offset, length)
                reads.append((self.client.last, bytes(mine[offset : offset + length])))
        at = 0
        while at < len(wire):
            size = rng.randrange(1, 60_000)
            self.client.feed.send(wire[at : at + size])
            at += size
            self.bench.turn()
            if rng.random() < 0.5:
                self.export.park()
                self.bench.turn()
                if rng.random() < 0.5:
                    self.bench.settle()
                self.export.unpark()
        for cookie, data in reads:
            self.assertTrue(self.client.data(cookie) == data)
        self.assertTrue(self.served.content() == mine)


each_way(ParkingSuite, globals())


class OrphanTests(SynchronousTestCase):
    """A client that comes back must not be overtaken by what it asked for before."""

    def test_who_connects_waits_for_changes_that_a_lost_connection_left_under_way(self):
        for feed in FEEDS:
            served = Served(bytes(65536))
            self.addCleanup(served.close)
            bench = served.bench
            first = served.client(feed)
            bystander = served.client(feed)
            bystander.read(0, 1)
            bench.pool.at_once = False
            served.image.cold = True
            first.write(0, b"old")
            first.ask(ZERO, 100, 5)
            bench.settle()
            first.feed.vanish()
            bench.settle()
            served.image.cold = False
            again = served.client(feed)
            cookie = again.write(0, b"new")
            self.assertFalse(again.is_answered(cookie))
            self.assertEqual(bystander.error(bystander.write(8192, b"free")), 0)
            bench.pool.work()
            self.assertFalse(again.is_answered(cookie))
            bench.pool.work()
            self.assertEqual(again.error(cookie), 0)
            self.assertEqual(served.content()[:3], b"new")
            bench.pool.at_once = True
