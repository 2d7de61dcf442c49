"""How much is received at a time: long writes in whole pieces, all else as it comes."""

import random

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.server.payloads import MOST_AT_ONCE, MOST_OF_NEW, UNLOOKED, Pieces
from flexmigrate.server.transmission import Scratch
from flexmigrate.wire.constants import Command
from support.feeds import PlainFeed
from support.serving import Served

SIZE = 4 << 20
MIB = 1 << 20
ALL = len(Scratch().received)


class Receiving(SynchronousTestCase):
    def setUp(self):
        self.served = Served(size=SIZE)
        self.addCleanup(self.served.close)
        self.client = self.served.client(PlainFeed)
        self.protocol = self.client.feed.protocol
        self.content = random.Random(5).randbytes(SIZE)

    def write(self, offset, length):
        payload = self.content[offset : offset + length]
        return self.client.request(Command.WRITE, offset, payload=payload)

    def room(self):
        return len(self.protocol.get_buffer())

    def receive(self, stream):
        """Receive as the stream transport does: as much as there is room for."""
        sizes = []
        while stream:
            buffer = self.protocol.get_buffer()
            size = min(len(buffer), len(stream))
            buffer[:size] = stream[:size]
            stream = stream[size:]
            sizes.append(size)
            self.protocol.buffer_updated(size)
        return sizes

    def pieces(self):
        return [done[1:] for done in self.served.image.done if done[0] == "write"]

    def test_long_writes_one_behind_the_other_are_written_in_whole_pieces(self):
        for cached, most in ((True, MOST_AT_ONCE), (False, MOST_OF_NEW)):
            self.served.image.is_resident = lambda offset, length, cached=cached: cached
            self.served.image.done.clear()
            self.receive(b"".join(self.write(offset, MIB) for offset in range(0, SIZE, MIB)))
            self.assertTrue(self.served.content() == self.content)
            whole = [(offset, most) for offset in range(0, SIZE, most)]
            # The first begins behind its header, in the middle of a buffer.
            behind = (SIZE - MIB) // most
            self.assertEqual(self.pieces()[-behind:], whole[-behind:])

    def test_of_many_that_follow_one_another_some_are_looked_at(self):
        looked = []
        self.served.image.is_resident = lambda offset, length: looked.append(offset) or True
        pieces = Pieces(self.served.image)
        for number in range(2 * UNLOOKED + 1):
            self.assertEqual(pieces.most(number * MIB, MIB), MOST_AT_ONCE)
        self.assertEqual(looked, [number * UNLOOKED * MIB for number in range(3)])

    def test_so_many_calls_receive_them_as_there_are_pieces(self):
        stream = b"".join(self.write(offset, MIB) for offset in range(0, SIZE, MIB))
        sizes = self.receive(stream[:28]) + self.receive(stream[28:])
        pieces = [MOST_AT_ONCE, MOST_AT_ONCE + 28] * (SIZE // MIB - 1) + [MOST_AT_ONCE] * 2
        self.assertEqual(sizes, [28, *pieces])

    def test_short_writes_are_received_as_they_come_wherever_the_last_one_was_cut(self):
        stream = b"".join(self.write(offset, 4096) for offset in range(0, SIZE, 4096))
        for cut in (10, 28, 100):
            self.receive(stream[:cut])
            self.assertGreaterEqual(self.room() + cut, ALL)
            sizes = self.receive(stream[cut:])
            self.assertLessEqual(len(sizes), len(stream) // ALL + 2)
            self.assertTrue(self.served.content() == self.content)

    def test_behind_a_long_write_short_ones_are_received_as_they_come(self):
        self.receive(self.write(0, MIB) + self.write(MIB, 4096)[:28])
        self.assertEqual(self.room(), ALL)

    def test_the_rest_of_a_long_write_comes_with_the_next_header(self):
        write = self.write(0, MIB)
        self.receive(write[: 28 + MIB - 1000])
        left = self.protocol.get_buffer()
        self.assertEqual(len(left) % 4096, 1000 + 28)

    def test_there_is_always_room(self):
        stream = b"".join(self.write(offset, MIB) for offset in range(0, SIZE, MIB))
        rng = random.Random(8)
        while stream:
            size = min(rng.choice((1, 27, 28, 4095, 4096, 70_000, MIB)), len(stream), self.room())
            self.assertGreater(size, 0)
            self.receive(stream[:size])
            stream = stream[size:]
        self.assertTrue(self.served.content() == self.content)
