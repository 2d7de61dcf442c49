"""What is measured of requests: each answered one counts once, with its command, size and time."""

from __future__ import annotations

import errno
import random

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.server.measuring import BOUNDS, Measured, Meter
from flexmigrate.wire.constants import Command, CommandFlag
from support.serving import Served, SuiteBase, each_way

SIZE = 1 << 20
READ, WRITE = Command.READ, Command.WRITE


class MeasuringSuite(SuiteBase):
    size = SIZE
    logged = False

    def setUp(self):
        self.bytes = bytearray(random.Random(11).randbytes(self.size))
        meter = Meter()
        kind = meter.transmission(logged=self.logged)
        self.served = Served(bytes(self.bytes), transmission=kind)
        self.addCleanup(self.served.close)
        self.bench = self.served.bench
        self.client = self.connect()
        self.meter = meter.of(self.served.export.name)

    def work(self):
        """Have the disk do all that it is asked for."""
        while self.bench.pool.waiting:
            self.bench.pool.work()
            self.bench.settle()

    def assert_measured(self, **expected):
        """Each command's number of requests and of bytes; all others have none."""
        found = {
            command.name: (sum(measured.counts), measured.size)
            for command in Command
            if (measured := self.meter.commands.get(command)) and sum(measured.counts)
        }
        self.assertEqual(found, expected)

    def test_at_once_and_by_sendfile(self):
        self.client.read(4096, 512)
        self.client.read(0, 65536)
        self.client.read(3, 65537)
        self.assert_measured(READ=(3, 512 + 65536 + 65537))

    def test_writes_whole_and_in_pieces(self):
        for length in (100, 4096, 700_000):
            self.assertEqual(self.client.error(self.client.write(0, b"x" * length)), 0)
        self.assertEqual(self.client.error(self.client.write(0, b"x", CommandFlag.FUA)), 0)
        self.assert_measured(WRITE=(4, 704_197))

    def test_a_batch(self):
        self.client.feed.send(
            b"".join(self.client.request(READ, 0, 65536) for _ in range(8))
            + b"".join(self.client.request(WRITE, 0, payload=b"y" * 10) for _ in range(5))
        )
        self.assertEqual(self.client.error(self.client.last), 0)
        self.assert_measured(READ=(8, 8 * 65536), WRITE=(5, 50))

    def test_the_other_commands(self):
        wanted = {Command.FLUSH: 0, Command.TRIM: 8192, Command.WRITE_ZEROES: 4096}
        for command, length in (wanted | {Command.CACHE: 512}).items():
            self.assertEqual(self.client.error(self.client.ask(command, 0, length)), 0)
        expected = {"FLUSH": (1, 0), "TRIM": (1, 8192), "WRITE_ZEROES": (1, 4096)}
        if self.client.agreement.contexts:
            self.client.extents(self.client.ask(Command.BLOCK_STATUS, 0, SIZE))
            expected["BLOCK_STATUS"] = (1, SIZE)
        self.assert_measured(CACHE=(1, 512), **expected)

    def test_what_waits_for_the_disk_counts_when_it_is_answered(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        cookies = [self.client.ask(READ, at * 512, 512) for at in range(3)]
        cookies.append(self.client.write(0, b"x" * 512))
        self.bench.settle()
        self.assert_measured()
        self.work()
        for cookie in cookies:
            self.assertEqual(self.client.error(cookie), 0)
        self.assert_measured(READ=(3, 1536), WRITE=(1, 512))

    def test_errors_count_as_requests_without_bytes(self):
        self.assertEqual(self.client.error(self.client.ask(READ, SIZE, 1)), errno.EINVAL)
        self.served.image.faults["write"] = OSError(errno.ENOSPC, "full")
        for length in (100, 700_000):
            failed = self.client.write(0, b"x" * length)
            self.assertEqual(self.client.error(failed), errno.ENOSPC)
        self.assert_measured(READ=(1, 0), WRITE=(2, 0))
        self.assertEqual(self.meter.errors, {"EINVAL": 1, "ENOSPC": 2})

    def test_a_connection_that_is_lost_leaves_what_it_had(self):
        self.client.read(0, 512)
        self.bench.pool.at_once = False
        self.served.image.cold = True
        self.client.ask(READ, 0, 512)
        self.bench.settle()
        self.client.feed.vanish()
        self.work()
        self.assert_measured(READ=(2, 1024))
        self.served.image.cold = False
        self.bench.pool.at_once = True
        self.connect().read(0, 512)
        self.assert_measured(READ=(3, 1536))

    def test_the_time_is_that_until_the_reply(self):
        self.client.read(0, 512)
        measured = self.meter.commands[READ]
        self.assertGreater(measured.seconds, 0)
        self.assertLess(measured.seconds, 60)


class LoggedTooSuite(MeasuringSuite):
    logged = True


each_way(MeasuringSuite, globals())
each_way(LoggedTooSuite, globals())


class BucketTests(SynchronousTestCase):
    def test_a_bucket_has_its_upper_bound_and_the_last_has_none(self):
        measured = Measured()
        for bound in BOUNDS:
            measured.add(bound, 0)
        self.assertEqual(measured.counts, [1] * len(BOUNDS) + [0])
        measured.add(BOUNDS[-1] * 2, 7, count=3)
        self.assertEqual(measured.counts[-1], 3)
        self.assertEqual(measured.size, 7)
        self.assertAlmostEqual(measured.seconds, sum(BOUNDS) + 6 * BOUNDS[-1])
