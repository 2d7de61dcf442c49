"""Each command over each feed and in each style of replies: what is answered, and what is done."""

import errno
import random
import struct

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.linux import PAGE
from flexmigrate.server.commands import MAX_READ_EXTENTS, MAX_UNDER_WAY
from flexmigrate.server.transmission import Scratch
from flexmigrate.wire.constants import Command, CommandFlag
from flexmigrate.wire.requests import MAX_DRAIN
from support.feeds import PlainFeed, StreamFeed
from support.serving import EXTENDED, SIMPLE, STRUCTURED, Recorder, Served, each_way

SIZE = 2 << 20
READ, WRITE, TRIM, ZERO = Command.READ, Command.WRITE, Command.TRIM, Command.WRITE_ZEROES
HOLE_AND_ZERO = 3


class Base:
    feed: type
    wish: object

    def setUp(self):
        self.bytes = bytearray(random.Random(7).randbytes(SIZE))
        self.served = Served(bytes(self.bytes))
        self.addCleanup(self.served.close)
        self.bench = self.served.bench
        self.client = self.served.client(self.feed, self.wish)

    def assert_content(self):
        self.assertTrue(self.served.content() == bytes(self.bytes), "the image is not as it should")


class RequestsSuite(Base):
    def test_reads_give_the_bytes_whatever_their_length(self):
        for offset, length in ((0, 1), (511, 513), (4096, 65536), (3, 65537), (0, SIZE)):
            found = self.client.read(offset, length)
            self.assertTrue(found == self.bytes[offset : offset + length], (offset, length))

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

    def test_only_so_many_requests_are_with_the_pool_at_once(self):
        self.bench.pool.at_once = False
        self.served.image.cold = True
        cookies = [self.client.ask(READ, at, 7) for at in range(MAX_UNDER_WAY + 30)]
        self.bench.settle()
        self.assertEqual(len(self.bench.pool.waiting), MAX_UNDER_WAY)
        self.bench.pool.work()
        self.bench.settle()
        self.assertEqual(len(self.bench.pool.waiting), MAX_UNDER_WAY)
        self.bench.pool.at_once = True
        for at, cookie in enumerate(cookies):
            self.assertEqual(self.client.data(cookie), self.bytes[at : at + 7])


each_way(RequestsSuite, globals())


class OrderSuite(Base):
    """Done, then marked, then answered: for every change, on every path."""

    def setUp(self):
        super().setUp()
        self.recorder = Recorder()
        self.served.export.observer = self.recorder
        self.events = self.recorder.events
        image, export = self.served.image, self.served.export
        image.done = self.Told(self.events, "done")
        outlet = self.client.feed.protocol._outlet
        commands = self.client.feed.protocol._transmission
        recording = RecordingOutlet(outlet, self.events)
        commands._outlet = commands.commands._outlet = recording
        self.assertIs(export.observer, self.recorder)

    class Told(list):
        def __init__(self, events, word):
            super().__init__()
            self.events, self.word = events, word

        def append(self, done):
            self.events.append((self.word, *done))

    def changes(self):
        """Yield (what sends a change, its range)."""
        yield lambda: self.client.write(4096, b"x" * 512), (4096, 512)
        yield lambda: self.client.write(10, b"y" * 500, CommandFlag.FUA), (10, 500)
        yield lambda: self.client.write(0, b"z" * 700_000), (0, 700_000)
        yield lambda: self.client.ask(TRIM, 8192, 4096), (8192, 4096)
        yield lambda: self.client.ask(ZERO, 12288, 4096), (12288, 4096)
        yield lambda: self.client.ask(ZERO, 5, 4096, flags=CommandFlag.FUA), (5, 4096)
        yield lambda: self.client.ask(ZERO, 5, 99, flags=CommandFlag.NO_HOLE), (5, 99)

    def test_a_change_is_done_then_marked_then_answered(self):
        for cold in (False, True):
            self.served.image.cold = cold
            for change, (offset, length) in self.changes():
                self.events.clear()
                self.assertEqual(self.client.error(change()), 0)
                words = [event[0] for event in self.events]
                marks = [event for event in self.events if event[0] == "marked"]
                self.assertEqual(sum(size for _, _, size in marks), length)
                self.assertEqual(marks[0][1], offset)
                self.assertEqual(words.count("answered"), 1)
                self.assertEqual(words[-1], "answered")
                for at, event in enumerate(self.events):
                    if event[0] == "marked":
                        before = [found[2:] for found in self.events[:at] if found[0] == "done"]
                        self.assertIn(event[1:], before)

    def test_a_change_that_fails_is_told_to_the_observer_before_it_is_answered(self):
        for name in ("write", "zero", "trim"):
            self.served.image.faults[name] = OSError(errno.EIO, "the disk is ill")
        for cold in (False, True):
            self.served.image.cold = cold
            for change, (offset, _) in self.changes():
                self.events.clear()
                self.assertEqual(self.client.error(change()), errno.EIO)
                self.assertEqual([event[0] for event in self.events], ["failed", "answered"])
                self.assertEqual(self.events[0][1], offset)

    def test_a_flush_that_fails_makes_all_doubtful_before_it_is_answered(self):
        self.served.image.faults["flush"] = OSError(errno.EIO, "some write was lost")
        asked = (
            lambda: self.client.ask(Command.FLUSH),
            lambda: self.client.write(0, b"w", CommandFlag.FUA),
            lambda: self.client.ask(ZERO, 0, 512, flags=CommandFlag.FUA),
        )
        for ask in asked:
            self.events.clear()
            self.assertEqual(self.client.error(ask()), errno.EIO)
            self.assertEqual(self.events[-2:], [("failed", 0, SIZE), ("answered",)])

    def test_a_fast_zero_that_would_not_be_fast_changes_nothing(self):
        self.served.image.faults["zero"] = OSError(errno.ENOTSUP, "not fast")
        cookie = self.client.ask(ZERO, 0, 4096, flags=CommandFlag.FAST_ZERO)
        self.assertEqual(self.client.error(cookie), errno.ENOTSUP)
        self.assertEqual(self.events, [("answered",)])

    def test_a_change_that_is_refused_is_told_to_the_observer(self):
        for command in (WRITE, TRIM, ZERO):
            self.events.clear()
            self.assertNotEqual(self.client.error(self.client.ask(command, SIZE, 10)), 0)
            self.assertEqual([event[0] for event in self.events], ["refused", "answered"])

    def test_reads_are_nothing_to_the_observer(self):
        self.client.read(0, 100)
        self.client.read(0, 100_000)
        self.assertEqual({event[0] for event in self.events}, {"answered"})


class RecordingOutlet:
    def __init__(self, outlet, events):
        self.outlet, self.events = outlet, events

    def send(self, data, more=False):
        self.events.append(("answered",))
        self.outlet.send(data, more)

    def __getattr__(self, name):
        return getattr(self.outlet, name)


each_way(OrderSuite, globals())


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


class ReadOnlyTests(SynchronousTestCase):
    def test_nothing_changes_a_read_only_export(self):
        for feed in (PlainFeed, StreamFeed):
            served = Served(b"\x11" * 8192, read_only=True)
            self.addCleanup(served.close)
            client = served.client(feed, EXTENDED)
            for command, error in (
                (WRITE, errno.EPERM),
                (TRIM, errno.EINVAL),
                (ZERO, errno.EINVAL),
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


class ScratchTests(SynchronousTestCase):
    def test_a_batch_of_replies_fits_whatever_is_read(self):
        scratch = Scratch()
        self.assertGreater(len(scratch.replies), len(scratch.received))
