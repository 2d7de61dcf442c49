"""Holes, and what BLOCK_STATUS tells of them."""

import errno
import struct

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.reads import MAX_READ_EXTENTS
from flexmigrate.wire.constants import Command, CommandFlag
from support.feeds import PlainFeed, StreamFeed
from support.serving import EXTENDED, SIMPLE, STRUCTURED, Served

SIZE = 2 << 20
READ, WRITE, TRIM, ZERO = Command.READ, Command.WRITE, Command.TRIM, Command.WRITE_ZEROES
HOLE_AND_ZERO = 3


class HoleTests(SynchronousTestCase):
    """Holes and block status, where replies can tell of them."""

    ways = [(feed, wish) for feed in (PlainFeed, StreamFeed) for wish in (STRUCTURED, EXTENDED)]

    def serve(self, *ranges, size=1 << 20):
        served = Served(size=size)
        for offset, length in ranges:
            served.image.write(b"\x77" * length, offset)
        served.image.done.clear()
        self.addCleanup(served.close)
        return served

    def holes_told(self, client, cookie, offset, length):
        """Return the bytes of a read's reply that came as holes."""
        client.bench.settle()
        came = len(client.feed.received)
        client.data(cookie)
        return length - came if came < length else 0

    def test_a_read_of_a_hole_is_answered_with_a_hole(self):
        for feed, wish in self.ways:
            for cold in (False, True):
                for length in (4096, 65536, 1 << 19):
                    served = self.serve((1 << 19, 4096))
                    served.image.cold = cold
                    client = served.client(feed, wish)
                    cookie = client.ask(READ, 0, length)
                    served.bench.settle()
                    self.assertLess(len(client.feed.received), 200)
                    self.assertEqual(client.data(cookie), bytes(length))

    def test_a_read_over_holes_and_data_has_both(self):
        for feed, wish in self.ways:
            served = self.serve((65536, 65536), (300_000, 5))
            client = served.client(feed, wish)
            cookie = client.ask(READ, 1000, 400_000)
            served.bench.settle()
            self.assertLess(len(client.feed.received), 80_000)
            self.assertEqual(client.data(cookie), served.content()[1000:401_000])

    def test_a_read_that_must_not_be_cut_comes_in_one_piece(self):
        for feed, wish in self.ways:
            served = self.serve((65536, 65536))
            client = served.client(feed, wish)
            data = client.read(0, 200_000, CommandFlag.DF)
            self.assertEqual(data, served.content()[:200_000])

    def test_simple_replies_have_no_holes(self):
        for feed in (PlainFeed, StreamFeed):
            served = self.serve((65536, 65536))
            client = served.client(feed, SIMPLE)
            for length in (4096, 200_000):
                self.assertEqual(client.read(0, length), served.content()[:length])

    def test_a_fragmented_image_s_reads_stay_bounded(self):
        blocks = [(at * 16384, 4096) for at in range(3 * MAX_READ_EXTENTS)]
        served = self.serve(*blocks, size=4 << 20)
        for feed, wish in self.ways:
            client = served.client(feed, wish)
            self.assertTrue(client.read(0, 4 << 20) == served.content())

    def test_block_status_tells_what_lseek_tells(self):
        for feed, wish in self.ways:
            served = self.serve((65536, 65536), (300_000, 5))
            client = served.client(feed, wish)
            cookie = client.ask(Command.BLOCK_STATUS, 1000, 500_000)
            told = client.extents(cookie)
            known = [
                (extent.length, 0 if extent.data else HOLE_AND_ZERO)
                for extent in served.image.extents(1000, 500_000)
            ]
            self.assertEqual(told["base:allocation"], known)
            self.assertEqual(told["flexmigrate:dirty"], [(500_000, 0)])

    def test_req_one_gives_one_extent_of_each_context(self):
        for feed, wish in self.ways:
            served = self.serve((65536, 65536))
            client = served.client(feed, wish)
            served.export.dirty_runs = lambda offset, length: iter([(4096, 4096)])
            cookie = client.ask(Command.BLOCK_STATUS, 0, 1 << 20, flags=CommandFlag.REQ_ONE)
            told = client.extents(cookie)
            self.assertEqual(told["base:allocation"], [(65536, HOLE_AND_ZERO)])
            self.assertEqual(told["flexmigrate:dirty"], [(4096, 0)])

    def test_the_dirty_context_tells_what_a_migration_still_has_to_send(self):
        for feed, wish in self.ways:
            served = self.serve()
            client = served.client(feed, wish)
            served.export.dirty_runs = lambda offset, length: iter([(4096, 4096), (12288, 4096)])
            cookie = client.ask(Command.BLOCK_STATUS, 0, 65536)
            self.assertEqual(
                client.extents(cookie)["flexmigrate:dirty"],
                [(4096, 0), (4096, 1), (4096, 0), (4096, 1), (49152, 0)],
            )

    def test_a_payload_chooses_among_the_contexts(self):
        for feed in (PlainFeed, StreamFeed):
            served = self.serve((0, 4096))
            client = served.client(feed, EXTENDED)
            ids = {name: number for number, name in client.agreement.contexts}
            for names in (["base:allocation"], ["flexmigrate:dirty"], list(reversed(list(ids)))):
                chosen = [ids[name] for name in names]
                payload = struct.pack(f">Q{len(chosen)}I", 65536, *chosen)
                cookie = self.ask_filtered(client, 0, payload, chosen)
                self.assertEqual(set(client.extents(cookie)), set(names))

    def ask_filtered(self, client, offset, payload, contexts, **more):
        return client.ask(
            Command.BLOCK_STATUS,
            offset,
            len(payload),
            flags=CommandFlag.PAYLOAD_LEN,
            payload=payload,
            contexts=contexts,
            effect=65536,
            **more,
        )

    def test_a_payload_that_makes_no_sense_is_refused_and_the_connection_lives(self):
        for feed in (PlainFeed, StreamFeed):
            served = self.serve((0, 4096))
            client = served.client(feed, EXTENDED)
            (known, _), _ = client.agreement.contexts
            for offset, payload in (
                (0, b"\0" * 7),
                (0, struct.pack(">Q", 65536)),
                (0, struct.pack(">QIB", 65536, known, 0)),
                (0, struct.pack(">QI", 65536, 12345)),
                (0, struct.pack(">QII", 65536, known, known)),
                (0, struct.pack(">QI", 0, known)),
                (0, struct.pack(">QI", 2**64 - 1, known)),
                (1 << 20, struct.pack(">QI", 1, known)),
                (0, struct.pack(">QI", 65536, known) * 100),
            ):
                cookie = self.ask_filtered(client, offset, payload, ())
                self.assertEqual(client.error(cookie), errno.EINVAL, payload[:20])
            self.assertEqual(client.read(0, 2), b"\x77\x77")

    def test_block_status_without_a_context_is_refused(self):
        for feed in (PlainFeed, StreamFeed):
            served = self.serve()
            client = served.client(feed, SIMPLE)
            cookie = client.ask(Command.BLOCK_STATUS, 0, 4096)
            self.assertEqual(client.error(cookie), errno.EINVAL)

    def test_zeroes_written_into_a_hole_stay_a_hole(self):
        for feed, wish in self.ways:
            served = self.serve()
            client = served.client(feed, wish)
            self.assertEqual(client.error(client.write(0, bytes(1 << 20))), 0)
            self.assertEqual(served.data_bytes(), 0)
