"""Bytes that no client would send."""

import itertools
import random
import struct

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.wire.agreement import TLSMode
from flexmigrate.wire.constants import Command, Option
from flexmigrate.wire.frames import option
from flexmigrate.wire.requests import pack_request
from support.feeds import open_descriptors
from support.serving import (
    FEEDS,
    STYLES,
    Served,
)

SIZE = 4 << 20
READ, WRITE, FLUSH, ZERO = Command.READ, Command.WRITE, Command.FLUSH, Command.WRITE_ZEROES
LARGE = 2 << 20


class GarbageTests(SynchronousTestCase):
    def test_garbage_ends_at_most_its_own_connection(self):
        rng = random.Random(17)
        for feed in FEEDS:
            served = Served(b"\x05" * 65536)
            self.addCleanup(served.close)
            good = served.client(feed)
            before = open_descriptors()
            for _ in range(40):
                bad = feed(served.bench, served.factory)
                bad.send(rng.randbytes(rng.choice((1, 4, 28, 1000, 100_000))))
                served.bench.settle()
                bad.vanish()
                served.bench.settle()
            for wish, _ in itertools.product(STYLES.values(), range(25)):
                client = served.client(feed, wish)
                self.send_nearly_requests(client, rng)
                served.bench.settle()
                client.feed.vanish()
                served.bench.settle()
            self.assertEqual(open_descriptors(), before)
            self.assertEqual(len(served.factory.clients), 1)
            self.assertEqual(len(good.read(0, 65536)), 65536)
            self.assertEqual(served.export._under_way, 0)

    def test_plaintext_behind_starttls_ends_the_connection_without_an_error(self):
        for feed in FEEDS:
            served = Served(b"\x05" * 65536, tls=TLSMode.ON, tls_context=object())
            self.addCleanup(served.close)
            bad = feed(served.bench, served.factory)
            bad.send(struct.pack(">I", 3) + option(Option.STARTTLS) + option(Option.LIST))
            served.bench.settle()
            self.assertTrue(bad.ended)

    def send_nearly_requests(self, client, rng):
        """Send frames with the right magic and anything else."""
        extended = client.agreement.extended
        for _ in range(rng.randrange(1, 8)):
            hostile = (0, 1, 512, 65536, 2**31, 2**32 - 1)
            length = rng.choice((*hostile, 2**63, 2**64 - 1) if extended else hostile)
            offset = rng.choice((0, 1, 65535, 65536, 2**63 - 1, 2**64 - 4096, 2**64 - 1))
            flags, command = rng.choice((0, 1, 32, 33, 65535)), rng.randrange(12)
            client.feed.send(pack_request(extended, flags, command, 5, offset, length))
            client.feed.send(rng.randbytes(rng.choice((0, 1, 512))))
