"""Requests in the log: a line for each, a line for its reply, and all else is as without."""

from __future__ import annotations

import errno
import random
import re

from twisted.logger import globalLogPublisher

from flexmigrate.log.layouts import format_line
from flexmigrate.server.request_log import LoggedTransmission
from flexmigrate.server.transmission import Transmission
from flexmigrate.wire.constants import Command, CommandFlag
from support.serving import Served, SuiteBase, each_way

SIZE = 1 << 20
READ, WRITE = Command.READ, Command.WRITE
PATTERN = re.compile(r"\S+ info  server\.request_log \[client 1 \S+\]: (.*)\n")


class RequestLogSuite(SuiteBase):
    size = SIZE
    transmission = LoggedTransmission

    def setUp(self):
        self.bytes = bytearray(random.Random(11).randbytes(self.size))
        self.served = Served(bytes(self.bytes), transmission=self.transmission)
        self.addCleanup(self.served.close)
        self.bench = self.served.bench
        self.client = self.connect()
        self.lines = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)

    def note(self, event):
        if found := PATTERN.fullmatch(format_line(event).decode()):
            self.lines.append(re.sub(r"after [\d.]+ ms", "after T", found[1]))

    def assert_logged(self, *lines):
        self.bench.settle()
        self.assertEqual(self.lines, list(lines))
        self.lines.clear()

    def test_a_request_and_its_reply(self):
        for offset, length in ((4096, 512), (3, 65537)):
            cookie = self.client.ask(READ, offset, length)
            self.assertEqual(self.client.data(cookie), self.bytes[offset : offset + length])
            self.assert_logged(
                f"request {cookie:#x}: READ, {length} bytes at {offset}, flags none",
                f"reply {cookie:#x}: ok after T",
            )

    def test_commands_and_flags_have_their_names(self):
        for command, length in ((Command.FLUSH, 0), (Command.TRIM, 4096)):
            cookie = self.client.ask(command, 0, length, flags=CommandFlag.FUA)
            self.assertEqual(self.client.error(cookie), 0)
            self.assert_logged(
                f"request {cookie:#x}: {command.name}, {length} bytes at 0, flags FUA",
                f"reply {cookie:#x}: ok after T",
            )

    def test_what_is_refused_and_what_fails(self):
        refused = self.client.ask(READ, SIZE, 1)
        self.assertEqual(self.client.error(refused), errno.EINVAL)
        self.assertIn(f"reply {refused:#x}: EINVAL after T", self.lines)
        self.served.image.faults["write"] = OSError(errno.ENOSPC, "full")
        failed = self.client.write(0, b"x" * 100)
        self.assertEqual(self.client.error(failed), errno.ENOSPC)
        self.assertIn(f"reply {failed:#x}: ENOSPC after T", self.lines)

    def test_requests_in_one_batch_are_each_logged_once(self):
        """Also where the replies before them have to be sent first, to make room."""
        self.client.feed.send(
            b"".join(self.client.request(READ, 0, 65536) for _ in range(8))
            + self.client.request(WRITE, 0, payload=b"y" * 200_000)
        )
        self.assertEqual(self.client.error(self.client.last), 0)
        for cookie in range(1, 10):
            of_it = [line for line in self.lines if f" {cookie:#x}:" in line]
            self.assertEqual([line.split()[0] for line in of_it], ["request", "reply"], of_it)

    def test_a_block_status_is_one_reply(self):
        if not self.client.agreement.contexts:
            return
        cookie = self.client.ask(Command.BLOCK_STATUS, 0, SIZE)
        self.client.extents(cookie)
        self.assert_logged(
            f"request {cookie:#x}: BLOCK_STATUS, {SIZE} bytes at 0, flags none",
            f"reply {cookie:#x}: ok after T",
        )

    def test_a_slow_one_is_answered_later(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        cookie = self.client.ask(READ, 0, 10)
        self.assert_logged(f"request {cookie:#x}: READ, 10 bytes at 0, flags none")
        self.bench.pool.work()
        self.assert_logged(f"reply {cookie:#x}: ok after T")

    def test_the_goodbye_has_no_reply(self):
        self.client.say_goodbye()
        self.assert_logged("request 0x0: DISC, 0 bytes at 0, flags none")


class UnloggedSuite(RequestLogSuite):
    """Whoever doesn't ask for it gets the plain transmission, and no line."""

    transmission = Transmission

    def assert_logged(self, *lines):
        self.bench.settle()
        self.assertEqual(self.lines, [])

    def test_what_is_refused_and_what_fails(self):
        refused = self.client.ask(READ, SIZE, 1)
        self.assertEqual(self.client.error(refused), errno.EINVAL)
        self.assert_logged()

    def test_requests_in_one_batch_are_each_logged_once(self):
        self.client.feed.send(b"".join(self.client.request(READ, 0, 65536) for _ in range(8)))
        self.assertEqual(self.client.error(self.client.last), 0)
        self.assert_logged()


each_way(RequestLogSuite, globals())
each_way(UnloggedSuite, globals())
