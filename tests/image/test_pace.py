"""When writes leave the reactor's thread, and when they come back."""

import itertools
import os
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.file import Image
from flexmigrate.image.filesystems import KNOWN, OVERLAYFS, Filesystem
from flexmigrate.image.pace import FIRST_REST, LONGEST_REST, SLOW, Pace, _seen, had_processor
from support.feeds import StreamFeed
from support.images import blank_image
from support.serving import SIMPLE, Served

QUICK = SLOW / 100


class Times(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.had_processor = True
        self.pace = Pace(seconds=self.clock.seconds, was_running=lambda seconds: self.had_processor)

    def episode(self):
        """Be slow once; return how long it takes from the last slow write on until it's over."""
        self.pace.turn_was_slow(2 * SLOW)
        self.pace.waited(2 * SLOW)
        began = self.clock.seconds()
        while self.pace.waits:
            self.clock.advance(FIRST_REST / 10)
            self.pace.waited(QUICK)
        return self.clock.seconds() - began

    def test_quick_writes_stay(self):
        self.assertFalse(self.pace.waits)

    def test_a_turn_that_was_long_for_another_reason_costs_a_moment(self):
        for _ in range(20):
            self.pace.turn_was_slow(2 * SLOW)
            self.assertTrue(self.pace.waits)
            self.pace.waited(QUICK)
            self.assertTrue(self.pace.waits)
            self.clock.advance(FIRST_REST)
            self.pace.waited(QUICK)
            self.assertFalse(self.pace.waits)

    def test_who_had_no_processor_has_not_waited_for_a_disk(self):
        self.had_processor = False
        self.pace.turn_was_slow(2 * SLOW)
        self.assertFalse(self.pace.waits)
        self.had_processor = True
        self.pace.turn_was_slow(2 * SLOW)
        self.had_processor = False
        self.clock.advance(FIRST_REST)
        self.pace.waited(2 * SLOW)
        self.assertFalse(self.pace.waits)

    def test_the_kernel_tells_who_had_one(self):
        had_processor(1.0)
        self.assertTrue(had_processor(1e9))
        _seen.waited = -1e9
        self.assertFalse(had_processor(1.0))

    def test_they_stay_away_as_long_as_some_are_slow(self):
        self.pace.turn_was_slow(2 * SLOW)
        for _ in range(100):
            self.pace.waited(2 * SLOW)
            self.pace.waited(QUICK)
            self.clock.advance(FIRST_REST)
            self.assertTrue(self.pace.waits)
        self.clock.advance(2 * FIRST_REST)
        self.pace.waited(QUICK)
        self.assertFalse(self.pace.waits)

    def test_each_time_they_stay_away_for_longer(self):
        whiles = [self.episode() for _ in range(12)]
        for shorter, longer in itertools.pairwise(whiles[:7]):
            self.assertLess(abs(longer - 2 * shorter), FIRST_REST)
        self.assertLess(abs(whiles[-1] - LONGEST_REST), FIRST_REST)
        self.clock.advance(1000)
        self.assertLess(abs(self.episode() - 2 * FIRST_REST), FIRST_REST)

    def test_where_they_may_always_wait_they_never_come_back(self):
        pace = Pace(is_slow=True, seconds=self.clock.seconds)
        for _ in range(100):
            pace.waited(QUICK)
            self.clock.advance(1)
        self.assertTrue(pace.waits)


class Images(SynchronousTestCase):
    def test_only_known_filesystems_and_what_lies_above_them_are_local(self):
        local = {*KNOWN, OVERLAYFS}
        for magic in (*local, 0x65735546, 0x6969, 0xFF534D42, 0x01021997, 0x2FC12FC1, 4711, None):
            self.assertEqual(Filesystem("any", magic).is_local, magic in local)

    def test_a_write_of_whole_pages_waits_where_writes_do(self):
        path = blank_image(Path(self.mktemp()), 1 << 16)
        image = Image.open(str(path))
        self.addCleanup(image.close)
        self.assertFalse(image.may_block_write(0, 4096))
        image.pace = Pace(was_running=lambda seconds: True)
        image.pace.turn_was_slow(2 * SLOW)
        self.assertTrue(image.may_block_write(0, 4096))
        self.assertTrue(image.may_block_write(0, 100))
        while image.may_block_write(0, 4096):  # until one is quick, on a busy machine
            image.pace._until = 0.0
            image.write_in_thread(b"data", 0)
        with open(path, "rb") as file:
            self.assertEqual(os.pread(file.fileno(), 4, 0), b"data")


class NoticedByTheServer(SynchronousTestCase):
    """A server notices how long its writes take."""

    def setUp(self):
        self.served = Served(bytes(1 << 20))
        self.addCleanup(self.served.close)
        self.image = self.served.image
        self.image.pace = Pace(was_running=lambda seconds: True)
        self.client = self.served.client(StreamFeed, SIMPLE)

    def slow_down(self):
        write = type(self.image).write

        def slowly(image, view, offset):
            write(image, view, offset)
            end = os.times().elapsed + 2 * SLOW
            while os.times().elapsed < end:
                pass

        self.patch(type(self.image), "write", slowly)

    def test_short_ones(self):
        self.slow_down()
        self.client.write(0, b"s" * 4096)
        self.served.bench.settle()
        self.assertTrue(self.image.pace.waits)

    def test_long_ones(self):
        self.slow_down()
        self.client.write(0, b"l" * 600_000)
        self.served.bench.settle()
        self.assertTrue(self.image.pace.waits)
        self.assertEqual(self.served.content()[:600_000], b"l" * 600_000)
