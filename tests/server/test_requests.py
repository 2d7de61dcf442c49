"""Each command over each feed and in each style of replies: what is answered, and what is done."""

import errno
import random
import struct

from flexmigrate.image.cold_reads import READS_AT_ONCE
from flexmigrate.image.kernel.calls import PAGE
from flexmigrate.server.commands import MAX_UNDER_WAY
from flexmigrate.server.payloads import MOST_AT_ONCE, MOST_OF_NEW
from flexmigrate.wire.constants import Command, CommandFlag
from flexmigrate.wire.requests import MAX_DRAIN
from support.serving import SIMPLE, SuiteBase, each_way

SIZE = 2 << 20
READ, WRITE, TRIM, ZERO = Command.READ, Command.WRITE, Command.TRIM, Command.WRITE_ZEROES
HOLE_AND_ZERO = 3


class RequestsSuite(SuiteBase):
    size = SIZE

    def assert_content(self):
        self.assertTrue(self.served.content() == bytes(self.bytes), "the image is not as it should")

    def test_reads_give_the_bytes_whatever_their_length(self):
        for offset, length in ((0, 1), (511, 513), (4096, 65536), (3, 65537), (0, SIZE)):
            found = self.client.read(offset, length)
            self.assertTrue(found == self.bytes[offset : offset + length], (offset, length))

    def test_the_kernel_is_given_long_writes_in_pieces(self):
        payload = random.Random(7).randbytes(SIZE - 100)
        for cached, most in ((True, MOST_AT_ONCE), (False, MOST_OF_NEW)):
            self.served.image.is_resident = lambda offset, length, cached=cached: cached
            self.served.image.done.clear()
            self.assertEqual(self.client.error(self.client.write(100, payload)), 0)
            pieces = [length for name, _, length in self.served.image.done if name == "write"]
            self.assertLessEqual(max(pieces), most)
            self.assertEqual(sum(pieces), len(payload))

    def test_of_long_writes_that_follow_one_another_not_each_is_looked_at(self):
        looked = []
        self.served.image.is_resident = lambda offset, length: looked.append(offset) or True
        payload = bytes(MOST_AT_ONCE)
        for _ in range(10):
            for offset in range(0, SIZE, len(payload)):
                self.assertEqual(self.client.error(self.client.write(offset, payload)), 0)
        self.assertEqual(looked, [0] * 10)

    def test_reads_of_what_is_not_in_memory_give_the_bytes(self):
        self.served.image.cold = True
        for offset, length in ((0, 1), (511, 513), (4096, 65536), (3, 65537), (0, SIZE)):
            found = self.client.read(offset, length)
            self.assertTrue(found == self.bytes[offset : offset + length], (offset, length))

    def test_writes_change_these_bytes_and_no_others(self):
        for cold in (False, True):
            self.served.image.cold = cold
            for offset, length in ((0, 1), (511, 513), (4096, 65536), (3, 400_001), (0, SIZE)):
                data = random.Random(length).randbytes(length)
                self.assertEqual(self.client.error(self.client.write(offset, data)), 0)
                self.bytes[offset : offset + length] = data
                self.assert_content()

    def test_a_write_with_fua_is_flushed_before_it_is_answered(self):
        self.bench.pool.at_once = False
        cookie = self.client.write(100, b"durable", CommandFlag.FUA)
        self.client.collect()
        self.assertFalse(self.client.is_answered(cookie))
        self.assertEqual(self.served.image.done, [("write", 100, 7)])
        self.bench.pool.work()
        self.assertEqual(self.client.error(cookie), 0)
        self.assertEqual(self.served.image.done[-1], ("flush", 0, 0))

    def test_a_flush_takes_in_every_write_that_was_answered_before(self):
        self.client.write(0, b"first")
        flush = self.client.ask(Command.FLUSH)
        self.assertEqual(self.client.error(flush), 0)
        self.assertEqual([name for name, _, _ in self.served.image.done], ["write", "flush"])

    def test_write_zeroes_and_trim_with_fua_are_flushed_before_they_are_answered(self):
        for command, name in ((ZERO, "zero"), (TRIM, "trim")):
            self.served.image.done.clear()
            cookie = self.client.ask(command, 4096, 8192, flags=CommandFlag.FUA)
            self.assertEqual(self.client.error(cookie), 0)
            self.bytes[4096:12288] = bytes(8192)
            self.assert_content()
            self.assertEqual([done[0] for done in self.served.image.done], [name, "flush"])

    def test_fua_is_taken_with_every_command(self):
        read = self.client.ask(READ, 5, 100, flags=CommandFlag.FUA)
        self.assertEqual(self.client.data(read), self.bytes[5:105])
        for command, length in ((Command.FLUSH, 0), (Command.CACHE, 4096)):
            cookie = self.client.ask(command, 0, length, flags=CommandFlag.FUA)
            self.assertEqual(self.client.error(cookie), 0)

    def test_a_request_of_no_bytes_succeeds_and_changes_nothing(self):
        cookie = self.client.ask(READ, 17, 0)
        if self.wish is SIMPLE:
            # The parser, whose client never asks for nothing, has no place for it.
            self.bench.settle()
            reply = struct.pack(">IIQ", 0x67446698, 0, cookie)
            self.assertEqual(bytes(self.client.feed.received), reply)
            self.client.feed.received.clear()
        else:
            self.assertEqual(self.client.data(cookie), b"")
        for command in (WRITE, TRIM, ZERO, Command.CACHE):
            cookie = self.client.ask(command, 17, 0)
            self.assertEqual(self.client.error(cookie), 0)
        self.assert_content()

    def test_a_range_that_ends_beyond_the_export_is_refused_and_the_connection_lives(self):
        ranges = ((SIZE, 1), (SIZE - 1, 2), (2**64 - 4096, 4096), (2**63, 1), (2**64 - 1, 4096))
        for offset, length in ranges:
            for command, error in (
                (READ, errno.EINVAL),
                (WRITE, errno.ENOSPC),
                (TRIM, errno.EINVAL),
                (ZERO, errno.ENOSPC),
                (Command.CACHE, errno.EINVAL),
            ):
                cookie = self.client.ask(command, offset, length)
                self.assertEqual(self.client.error(cookie), error, (command, offset, length))
        self.assertEqual(self.client.read(0, 10), self.bytes[:10])
        self.assert_content()

    def test_an_unknown_command_is_refused_and_the_connection_lives(self):
        for command in (8, 77, 65535):
            cookie = self.client.ask(command, 0, 4096)
            self.assertEqual(self.client.error(cookie), errno.EINVAL)
        self.assertEqual(self.client.read(0, 10), self.bytes[:10])

    def test_a_refused_write_s_payload_is_thrown_away(self):
        cookie = self.client.write(SIZE - 100, b"\x25\x60\x95\x13" * 100_000)
        self.assertEqual(self.client.error(cookie), errno.ENOSPC)
        self.assertEqual(self.client.read(0, 10), self.bytes[:10])
        self.assert_content()

    def test_a_payload_that_is_not_worth_reading_ends_the_connection(self):
        request = self.client.request(WRITE, 0, payload=b"")
        head = "> 4s 2s 2s Q Q Q" if self.client.agreement.extended else "> 4s 2s 2s Q Q I"
        layout = struct.Struct(head.replace(" ", ""))
        fields = layout.unpack(request)
        self.client.feed.send(layout.pack(*fields[:-1], MAX_DRAIN + 1) + b"data")
        self.bench.settle()
        self.assertTrue(self.client.ended)

    def test_bad_magic_is_answered_and_ends_the_connection_and_no_other(self):
        other = self.served.client(self.feed, self.wish)
        read = self.client.request(READ, 0, 10)
        cookie = self.client.last
        garbage = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"
        self.client.feed.send(read + garbage)
        self.bench.settle()
        self.assertTrue(self.client.feed.ended)
        came = bytes(self.client.feed.received)
        self.client.feed.received = bytearray(came[: self._length_of_a_read(10)])
        self.assertEqual(self.client.data(cookie), self.bytes[:10])
        self.assertGreater(len(came), self._length_of_a_read(10), "no error reply")
        self.assertEqual(other.read(0, 10), self.bytes[:10])

    def _length_of_a_read(self, length):
        if self.client.agreement.extended:
            return 40 + length
        return (28 if self.client.agreement.structured else 16) + length

    def test_requests_cut_at_every_byte_are_the_same(self):
        wire = b""
        cookies = []
        for request in (
            (WRITE, 10, b"some bytes"),
            (READ, 0, None),
            (WRITE, SIZE, b"beyond"),
            (77, 0, None),
            (Command.FLUSH, 0, None),
        ):
            command, offset, payload = request
            length = 30 if command == READ else 0
            wire += self.client.request(command, offset, length, payload=payload)
            cookies.append(self.client.last)
        for byte in wire:
            self.client.feed.send(bytes([byte]))
            self.bench.settle()
        self.bytes[10:20] = b"some bytes"
        errors = [self.client.error(cookie) for cookie in cookies]
        self.assertEqual(errors, [0, 0, errno.ENOSPC, errno.EINVAL, 0])
        self.assertEqual(self.client.data(cookies[1]), self.bytes[:30])
        self.assert_content()

    def test_many_requests_in_one_packet_are_all_answered(self):
        rng = random.Random(3)
        wire = bytearray()
        reads = {}
        for _ in range(600):
            offset, length = rng.randrange(SIZE - 5000), rng.randrange(1, 5000)
            if rng.random() < 0.5:
                data = rng.randbytes(length)
                wire += self.client.request(WRITE, offset, payload=data)
                self.bytes[offset : offset + length] = data
            else:
                wire += self.client.request(READ, offset, length)
                reads[self.client.last] = bytes(self.bytes[offset : offset + length])
        self.client.feed.send(wire)
        for cookie, data in reads.items():
            self.assertTrue(self.client.data(cookie) == data)
        self.assert_content()

    def test_replies_that_fill_the_buffer_are_sent_and_none_is_lost(self):
        cookies = []
        wire = b""
        for _ in range(40):
            wire += self.client.request(READ, 1, 65536)
            cookies.append(self.client.last)
        self.client.feed.send(wire)
        for cookie in cookies:
            self.assertTrue(self.client.data(cookie) == self.bytes[1:65537])

    def test_a_long_write_may_be_cut_anywhere(self):
        data = random.Random(1).randbytes(3 * PAGE + 100)
        offset = 5 * PAGE - 50
        for cut in (0, 1, 49, 50, 51, PAGE + 49, PAGE + 50, PAGE + 51, len(data) - 1, len(data)):
            request = self.client.request(WRITE, offset, payload=data)
            head = len(request) - len(data)
            self.client.feed.send(request[: head + cut])
            self.bench.settle()
            self.client.feed.send(request[head + cut :])
            self.assertEqual(self.client.error(self.client.last), 0, cut)
            self.bytes[offset : offset + len(data)] = data
            self.assert_content()
            data = data[1:] + data[:1]

    def test_a_long_write_is_done_page_by_page_so_that_its_zeroes_are_seen(self):
        self.assertEqual(self.client.error(self.client.ask(TRIM, 0, SIZE)), 0)
        cookie = self.client.write(0, bytes(SIZE))
        self.assertEqual(self.client.error(cookie), 0)
        pieces = [(at, size) for name, at, size in self.served.image.done if name == "write"]
        self.assertTrue(all(at % PAGE == 0 and size % PAGE == 0 for at, size in pieces), pieces)
        self.assertEqual(self.served.data_bytes(), 0)

    def test_after_a_failed_piece_the_rest_of_a_write_is_thrown_away_and_the_failure_told(self):
        for cold in (False, True):
            self.served.image.cold = cold
            self.served.image.faults["write"] = OSError(errno.ENOSPC, "no room")
            cookie = self.client.write(0, bytes(600_000))
            self.assertEqual(self.client.error(cookie), errno.ENOSPC)
            self.served.image.faults.clear()
            self.assertEqual(self.client.read(0, 10), self.bytes[:10])

    def test_a_bug_at_a_piece_is_an_input_output_error_and_holds_nobody(self):
        self.served.image.cold = True
        self.served.image.faults["write"] = ZeroDivisionError("a bug")
        cookie = self.client.write(0, bytes(600_000))
        self.assertEqual(self.client.error(cookie), errno.EIO)
        self.assertGreaterEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.served.image.faults.clear()
        self.assertEqual(self.client.read(0, 10), self.bytes[:10])

    def test_failures_of_the_disk_are_told_in_the_numbers_that_the_specification_has(self):
        self.served.image.cold = True
        for number, told in (
            (errno.EIO, errno.EIO),
            (errno.ENOSPC, errno.ENOSPC),
            (errno.EDQUOT, errno.ENOSPC),
            (errno.EUCLEAN, errno.EIO),
        ):
            for name in ("read", "write", "zero", "trim", "flush"):
                self.served.image.faults[name] = OSError(number, "text")
            for command, length in ((READ, 10), (WRITE, 10), (ZERO, 10), (TRIM, 10), (3, 0)):
                cookie = self.client.ask(command, 0, length)
                self.assertEqual(self.client.error(cookie), told, (command, number))
        self.served.image.faults.clear()
        self.assertEqual(self.client.read(0, 10), self.bytes[:10])

    def test_cold_requests_do_not_hold_up_the_others(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        cold = self.client.ask(READ, 0, 100)
        self.bench.settle()
        self.served.image.cold = False
        warm = self.client.ask(READ, 100, 100)
        self.assertEqual(self.client.data(warm), self.bytes[100:200])
        self.assertFalse(self.client.is_answered(cold))
        self.bench.pool.work()
        self.assertEqual(self.client.data(cold), self.bytes[:100])

    def _ask_cold(self, count):
        """Ask for so many blocks in one packet, all of which are on the disk."""
        self.served.image.cold = True
        wire, cookies = b"", []
        for number in range(count):
            wire += self.client.request(READ, number * 512, 512)
            cookies.append(self.client.last)
        self.client.feed.send(wire)
        self.bench.settle()
        return cookies

    def test_one_bad_sector_among_cold_reads_fails_its_own_read(self):
        self.served.image.bad = {3 * 512}
        for number, cookie in enumerate(self._ask_cold(READS_AT_ONCE + 2)):
            if number == 3:
                self.assertEqual(self.client.error(cookie), errno.EIO)
            else:
                at = number * 512
                self.assertEqual(self.client.data(cookie), self.bytes[at : at + 512])

    def test_a_bug_at_cold_reads_is_an_input_output_error_to_each(self):
        self.served.image.faults["read"] = ZeroDivisionError("a bug")
        for cookie in self._ask_cold(READS_AT_ONCE + 2):
            self.assertEqual(self.client.error(cookie), errno.EIO)
        self.assertGreaterEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.served.image.faults.clear()
        self.assertEqual(self.client.read(0, 10), self.bytes[:10])

    def test_only_so_many_requests_are_with_the_pool_at_once(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        wire, cookies = b"", []
        for at in range(MAX_UNDER_WAY + 30):
            wire += self.client.request(READ, at, 7)
            cookies.append(self.client.last)
        self.client.feed.send(wire)
        self.bench.settle()
        self.assertEqual(len(self.bench.pool.waiting), MAX_UNDER_WAY // READS_AT_ONCE)
        self.bench.pool.work()
        self.bench.settle()
        # With room for as many again as one thread has brought back.
        self.assertEqual(len(self.bench.pool.waiting), MAX_UNDER_WAY // READS_AT_ONCE)
        self.bench.pool.at_once = True
        for at, cookie in enumerate(cookies):
            self.assertEqual(self.client.data(cookie), self.bytes[at : at + 7])


each_way(RequestsSuite, globals())
