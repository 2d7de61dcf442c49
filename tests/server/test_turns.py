"""A turn of one connection is bounded, whatever its client sends: counted in requests."""

import errno

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.server.transmission import COSTLY_A_TURN, REQUESTS_A_TURN
from flexmigrate.wire.constants import Command
from flexmigrate.wire.requests import pack_request
from support.feeds import PlainFeed, StreamFeed
from support.serving import EXTENDED, SIMPLE, STRUCTURED, Served

SIZE = 1 << 20
COUNT = 600


class Turns(SynchronousTestCase):
    """In each turn no more than so many requests are taken, and the reactor has its own between."""

    feed = StreamFeed
    wish = SIMPLE

    def setUp(self):
        self.served = Served(bytes(SIZE), size=SIZE)
        self.addCleanup(self.served.close)
        self.client = self.served.client(self.feed, self.wish)
        self.protocol = self.client.feed.protocol

    def most_in_a_turn(self, *requests):
        """Send all at once; return how many were taken in one turn at most, and check that all were
        taken in the end.
        """
        transmission = self.protocol._transmission
        serve, taken = transmission.serve, []
        wanted = transmission.served + len(requests)

        def counted(at, end):
            before = transmission.served
            at = serve(at, end)
            taken.append(transmission.served - before)
            return at

        self.patch(transmission, "serve", counted)
        self.client.feed.send(b"".join(requests))
        for _ in range(100 * COUNT):
            if transmission.served == wanted:
                break
            turns = len(taken)
            self.served.bench.turn()
            self.client.feed.received.clear()
            # One of what was left, one of what has come since, and one that a hold's end begins.
            self.assertLessEqual(len(taken) - turns, 3)
        self.assertEqual(transmission.served, wanted)
        self.served.bench.settle()
        return max(taken)

    def requests(self, command, offset=0, length=0, **more):
        return [self.client.request(command, offset, length, **more) for _ in range(COUNT)]

    def raw(self, command, flags=0, offset=0, length=0):
        extended = self.client.agreement.extended
        return [pack_request(extended, flags, command, 7, offset, length)] * COUNT

    def test_reads(self):
        most = self.most_in_a_turn(*self.requests(Command.READ, 0, 512))
        self.assertLessEqual(most, REQUESTS_A_TURN)
        self.assertGreater(most, COSTLY_A_TURN)

    def test_writes(self):
        most = self.most_in_a_turn(*self.requests(Command.WRITE, 0, payload=bytes(512)))
        self.assertLessEqual(most, REQUESTS_A_TURN)

    def test_reads_with_long_replies(self):
        most = self.most_in_a_turn(*self.requests(Command.READ, 0, 65536))
        self.assertLessEqual(most * 65536, 2 << 20)

    def test_what_is_refused(self):
        for requests in (
            self.raw(4711),
            self.raw(Command.READ, flags=0x80, length=512),
            self.raw(Command.READ, offset=SIZE, length=512),
            self.raw(Command.TRIM, offset=SIZE, length=512),
        ):
            with capturedLogs():
                self.assertLessEqual(self.most_in_a_turn(*requests), COSTLY_A_TURN)

    def test_what_a_thread_does(self):
        for command, length in (
            (Command.FLUSH, 0),
            (Command.TRIM, 4096),
            (Command.WRITE_ZEROES, 4096),
            (Command.CACHE, 4096),
            (Command.READ, 128 * 1024),
        ):
            requests = self.requests(command, 0, length)[: COUNT // 4]
            self.assertLessEqual(self.most_in_a_turn(*requests), COSTLY_A_TURN, command)

    def test_what_has_no_bytes(self):
        self.assertLessEqual(self.most_in_a_turn(*self.raw(Command.READ)), COSTLY_A_TURN)

    def test_writes_that_fail(self):
        self.served.image.faults["write"] = OSError(errno.ENOSPC, "full")
        requests = self.requests(Command.WRITE, 0, payload=bytes(512))
        with capturedLogs():
            # And one of which only a part had come before.
            self.assertLessEqual(self.most_in_a_turn(*requests), COSTLY_A_TURN + 1)

    def test_writes_that_wait(self):
        self.served.image.cold = True
        requests = self.requests(Command.WRITE, 0, payload=bytes(512))
        self.assertLessEqual(self.most_in_a_turn(*requests), COSTLY_A_TURN + 1)

    def test_others_are_served_between(self):
        other = self.served.client(self.feed, SIMPLE)
        with capturedLogs():
            self.client.feed.send(b"".join(self.raw(4711) * 10))
            for _ in range(3):
                self.served.bench.turn()
            cookie = other.ask(Command.READ, 0, 512)
            turns = 0
            while not other.feed.received and turns < 10:
                self.served.bench.turn()
                turns += 1
            served = self.protocol._transmission.served
        self.assertLess(turns, 10)
        self.assertLess(served, COUNT)
        self.assertEqual(other.error(cookie), 0)


class OverAnyTransport(Turns):
    feed = PlainFeed


class WithStructuredReplies(Turns):
    wish = STRUCTURED

    def test_holes(self):
        with open(self.served.path, "r+b") as file:
            file.truncate(0)
            file.truncate(SIZE)
        self.served.image._may_have_holes = True
        self.served.image.read(0, SIZE)
        most = self.most_in_a_turn(*self.requests(Command.READ, 0, 512))
        self.assertLessEqual(most, COSTLY_A_TURN)

    def test_extents(self):
        requests = self.requests(Command.BLOCK_STATUS, 0, SIZE)[: COUNT // 4]
        self.assertEqual(self.most_in_a_turn(*requests), 1)


class WithExtendedHeaders(WithStructuredReplies):
    wish = EXTENDED
