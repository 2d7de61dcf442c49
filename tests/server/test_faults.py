"""An image that can not be written, or is not what it was."""

import errno

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.wire.constants import Command
from support.feeds import PlainFeed, StreamFeed
from support.serving import EXTENDED, SIMPLE, Served

SIZE = 2 << 20
READ, WRITE, TRIM, ZERO = Command.READ, Command.WRITE, Command.TRIM, Command.WRITE_ZEROES
HOLE_AND_ZERO = 3


class ReadOnlyTests(SynchronousTestCase):
    def test_nothing_changes_a_read_only_export(self):
        for feed in (PlainFeed, StreamFeed):
            served = Served(b"\x11" * 8192, read_only=True)
            self.addCleanup(served.close)
            client = served.client(feed, EXTENDED)
            for command, error in (
                (WRITE, errno.EPERM),
                (TRIM, errno.EPERM),
                (ZERO, errno.EPERM),
            ):
                cookie = client.ask(command, 0, 4096)
                self.assertEqual(client.error(cookie), error)
            self.assertEqual(client.read(0, 8192), b"\x11" * 8192)
            self.assertEqual(served.content(), b"\x11" * 8192)


class TruncatedImageTests(SynchronousTestCase):
    def test_a_read_behind_the_end_of_a_truncated_image_fails_and_nothing_else_does(self):
        for feed in (PlainFeed, StreamFeed):
            for cold, length in ((False, 512), (True, 512), (True, 1 << 20), (False, 1 << 20)):
                served = Served(b"\x42" * SIZE)
                self.addCleanup(served.close)
                reader = served.client(feed, EXTENDED)
                other = served.client(feed, SIMPLE)
                with open(served.path, "r+b") as file:
                    file.truncate(4096)
                served.image.cold = cold
                cookie = reader.ask(READ, 65536, length)
                # Pages behind the end may still be in memory, and the read's head be sent then.
                if cold or length == 512 or not reader.ended:
                    self.assertEqual(reader.error(cookie), errno.EIO)
                    self.assertEqual(reader.read(0, 10), b"\x42" * 10)
                self.assertEqual(other.read(0, 4096), b"\x42" * 4096)

    def test_an_image_truncated_while_it_is_sent_ends_that_connection_and_no_other(self):
        for feed in (PlainFeed, StreamFeed):
            served = Served(b"\x42" * (8 << 20))
            self.addCleanup(served.close)
            reader = served.client(feed, EXTENDED)
            other = served.client(feed, SIMPLE)
            reader.feed.read_limit = 100
            reader.ask(READ, 0, 8 << 20)
            served.bench.settle()
            with open(served.path, "r+b") as file:
                file.truncate(4096)
            reader.feed.read_limit = None
            served.bench.settle()
            self.assertTrue(reader.feed.ended)
            self.assertEqual(other.read(0, 4096), b"\x42" * 4096)


class ErrnoTests(SynchronousTestCase):
    def test_a_full_disk_costs_no_connection(self):
        for feed in (PlainFeed, StreamFeed):
            served = Served(bytes(65536))
            self.addCleanup(served.close)
            client = served.client(feed)
            served.image.faults["write"] = OSError(errno.ENOSPC, "full")
            self.assertEqual(client.error(client.write(0, b"x" * 4096)), errno.ENOSPC)
            served.image.faults.clear()
            self.assertEqual(client.error(client.write(0, b"x" * 4096)), 0)
