from __future__ import annotations

import itertools
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import ConnectionGone, RequestFailed
from flexmigrate.image.extents import Extent
from flexmigrate.image.file import Image
from flexmigrate.image.file_storage import FileStorage
from flexmigrate.image.storage import Sendable
from flexmigrate.migration.dirty_map import DirtyMap
from flexmigrate.migration.source.cache_advice import DROP_BYTES, READ_AHEAD
from flexmigrate.migration.source.copier import (
    IN_FLIGHT,
    MOST_IN_FLIGHT,
    MOST_READING,
    RECHECK_SECONDS,
    REQUEST_SIZE,
    SLICE_SECONDS,
    Copier,
    Holes,
)
from flexmigrate.migration.source.progress import Progress
from flexmigrate.migration.source.rate import RateLimit
from flexmigrate.testing import InlineClock, InlineThreads
from flexmigrate.wire.constants import TransmissionFlag

BLOCK = 4096
MIB = 1 << 20
ALL = TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FLUSH


class Asked:
    """One request, which is answered when the test says so."""

    def __init__(self, command: str, offset: int, length: int, data: bytes = b"") -> None:
        self.command = command
        self.offset = offset
        self.length = length
        self.data = data
        self.answer: Deferred[None] = Deferred()

    @property
    def what(self) -> tuple[str, int, int]:
        return self.command, self.offset, self.length


class RecordedClient:
    """A connection that keeps what is asked of it, and an image to see what came of that."""

    def __init__(self, size: int, flags: TransmissionFlag = ALL) -> None:
        self.flags = flags
        self.image = bytearray(random.Random(2).randbytes(size))
        self.asked: list[Asked] = []
        self.waiting: list[Asked] = []
        self.writable = True
        self.at_once = False
        self.takes: Callable[[], object] = lambda: None
        self._writable_waiters: list[Deferred[None]] = []

    def _ask(self, asked: Asked) -> Deferred[None]:
        self.takes()
        for other in self.waiting:
            overlap = asked.offset < other.offset + other.length
            if overlap and other.offset < asked.offset + asked.length:
                raise AssertionError(f"{asked.what} overlaps {other.what}")
        self.asked.append(asked)
        self.waiting.append(asked)
        if self.at_once:
            self.answer()
        return asked.answer

    def write(self, data: Any, offset: int) -> Deferred[None]:
        return self._ask(Asked("write", offset, len(data), bytes(data)))

    def write_from(self, image: Image, offset: int, length: int) -> Deferred[None]:
        return self._ask(Asked("write", offset, length, image.read(offset, length)))

    def zero(self, offset: int, length: int) -> Deferred[None]:
        return self._ask(Asked("zero", offset, length, bytes(length)))

    def flush(self) -> Deferred[None]:
        return self._ask(Asked("flush", 0, 0))

    def when_writable(self) -> Deferred[None]:
        waiter: Deferred[None] = Deferred()
        self._writable_waiters.append(waiter)
        return waiter

    def drain(self) -> None:
        self.writable = True
        waiters, self._writable_waiters = self._writable_waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def answer(self, which: int = 0, error: Exception | None = None) -> Asked:
        asked = self.waiting.pop(which)
        if error is not None:
            asked.answer.errback(error)
        else:
            self.image[asked.offset : asked.offset + asked.length] = asked.data
            asked.answer.callback(None)
        return asked

    def answer_all(self) -> None:
        while self.waiting:
            self.answer(-1)


class CopierCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.clock = InlineClock()
        self.numbers = itertools.count(1)

    def make(
        self,
        size: int,
        data: list[tuple[int, int]],
        flags: TransmissionFlag = ALL,
        limit: int = 0,
        drop_cache: bool = False,
    ) -> Copier:
        """Make an image of *size* bytes with random *data*, and what copies it."""
        path = self.folder / f"disk{next(self.numbers)}.img"
        with path.open("wb") as file:
            file.truncate(size)
            for offset, length in data:
                file.seek(offset)
                file.write(random.Random(offset).randbytes(length))
        self.image = Image.open(str(path))
        self.addCleanup(self.image.close)
        self.client = RecordedClient(size, flags)
        self.dirty = DirtyMap(size)
        self.limit = RateLimit(limit)
        self.progress = Progress(0.0)
        threads: Any = InlineThreads()
        reactor: Any = self.clock
        client: Any = self.client
        return Copier(
            self.clock,
            FileStorage(self.image, reactor, threads),
            client,
            self.dirty,
            self.limit,
            self.progress,
            drop_cache,
        )

    def change(self, offset: int, data: bytes) -> None:
        """Do what a client's write does."""
        self.image.write(data, offset)
        self.dirty.mark(offset, len(data))

    def begin(self, work: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(work)

    def asked(self) -> list[tuple[str, int, int]]:
        return [each.what for each in self.client.asked]

    def assert_equal_images_in(self, ranges: list[tuple[int, int]]) -> None:
        for offset, length in ranges:
            copied = bytes(self.client.image[offset : offset + length])
            self.assertEqual(copied, self.image.read(offset, length))

    def assert_equal_images(self) -> None:
        self.assertEqual(bytes(self.client.image), self.image.read(0, self.image.size))


class HoleTests(CopierCase):
    def test_holes_are_zeroed_and_data_is_marked(self) -> None:
        copier = self.make(4 * MIB, [(MIB, MIB)])
        sending = self.begin(copier.send_holes())
        self.assertEqual(self.asked(), [("zero", 0, MIB), ("zero", 2 * MIB, 2 * MIB)])
        self.assertNoResult(sending)
        self.client.answer_all()
        self.successResultOf(sending)
        self.assertEqual(list(self.dirty.runs(0, 4 * MIB)), [(MIB, MIB)])
        self.assertEqual((self.progress.zeroed, self.progress.sent), (3 * MIB, 0))

    def test_what_is_answered_and_nothing_else_is_dropped_if_it_is_wished(self) -> None:
        dropped: list[tuple[int, int]] = []
        self.patch(Image, "drop_cached", lambda _, ranges: dropped.extend(ranges))
        size = 40 * MIB
        for drop_cache in (False, True):
            copier = self.make(size, [(0, size)], drop_cache=drop_cache)
            self.dirty.mark(0, size)
            sending = self.begin(copier.send_dirty())
            self.assertEqual(len(self.client.waiting), 40)
            self.client.answer(7)
            self.assertEqual(dropped, [])
            for _ in range(16):
                self.client.answer()
            self.assertEqual(len(dropped), DROP_BYTES // MIB if drop_cache else 0)
            self.client.answer_all()
            self.assertEqual(self.successResultOf(sending), size)
        self.assertEqual(sorted(dropped), [(at, MIB) for at in range(0, size, MIB)])

    def test_little_data_between_holes_is_zeroed_with_them_and_sent_after(self) -> None:
        size, pieces = 16 * MIB, [(2 * MIB, BLOCK), (5 * MIB, BLOCK), (9 * MIB, 4 * MIB)]
        copier = self.make(size, pieces)
        sending = self.begin(copier.send_holes())
        self.assertEqual(self.asked(), [("zero", 0, 9 * MIB), ("zero", 13 * MIB, 3 * MIB)])
        self.client.answer_all()
        self.successResultOf(sending)
        self.assertEqual(list(self.dirty.runs(0, size)), pieces)
        self.client.at_once = True
        self.successResultOf(self.begin(copier.send_dirty()))
        self.assert_equal_images()

    def test_are_joined_only_where_they_are_mostly_hole(self) -> None:
        for mostly, joined in ((1, 1), (8, 1), (9, 2), (None, 2)):
            holes = Holes(mostly)
            first, second = Extent(0, 4 * BLOCK, False), Extent(5 * BLOCK, 4 * BLOCK, False)
            complete = [holes.add(first), holes.add(second), holes.last]
            self.assertEqual(len([each for each in complete if each]), joined, mostly)
            if joined == 1:
                self.assertEqual(holes.last, Extent(0, 9 * BLOCK, False))
            else:
                self.assertEqual(complete, [None, first, second])

    def test_that_are_joined_have_no_more_data_however_many_they_are(self) -> None:
        draw = random.Random(1)
        for _ in range(100):
            holes, given, at = Holes(8), [], 0
            for _ in range(50):
                hole = Extent(
                    at + draw.randrange(1, 4) * BLOCK, draw.randrange(1, 40) * BLOCK, False
                )
                at = hole.end
                given.append(hole)
                zeroed = holes.add(hole)
                if zeroed is not None:
                    self.check_mostly_hole(zeroed, given)
            assert holes.last is not None
            self.check_mostly_hole(holes.last, given)

    def check_mostly_hole(self, zeroed: Extent, given: list[Extent]) -> None:
        inside = [each for each in given if zeroed.offset <= each.offset and each.end <= zeroed.end]
        empty = sum(each.length for each in inside)
        self.assertGreaterEqual(empty, 8 * (zeroed.length - empty))
        self.assertEqual((inside[0].offset, inside[-1].end), (zeroed.offset, zeroed.end))

    def test_zeroes_are_written_to_who_can_not_be_told_of_them(self) -> None:
        copier = self.make(3 * MIB, [(0, BLOCK)], TransmissionFlag(0))
        self.client.at_once = True
        self.successResultOf(self.begin(copier.send_holes()))
        self.successResultOf(self.begin(copier.send_dirty()))
        self.assertEqual({command for command, _, _ in self.asked()}, {"write"})
        self.assertLessEqual(max(length for _, _, length in self.asked()), REQUEST_SIZE)
        self.assert_equal_images()

    def test_what_was_written_into_a_hole_comes_after_its_zeroes(self) -> None:
        copier = self.make(MIB, [])
        sending = self.begin(copier.send_holes())
        self.change(0, b"x" * BLOCK)
        self.client.answer_all()
        self.successResultOf(sending)
        self.client.at_once = True
        self.successResultOf(self.begin(copier.send_dirty()))
        self.assert_equal_images()

    def test_a_dirty_hole_is_zeroed(self) -> None:
        copier = self.make(MIB, [(0, MIB)])
        self.client.at_once = True
        self.image.zero(BLOCK, BLOCK, may_punch=True)
        self.dirty.mark(0, MIB)
        self.successResultOf(self.begin(copier.send_dirty()))
        self.assertIn(("zero", BLOCK, BLOCK), self.asked())
        self.assert_equal_images()

    def test_where_data_ends_is_asked_once_for_each_stretch_of_it_in_a_walk(self) -> None:
        copier = self.make(16 * MIB, [(0, 6 * MIB), (10 * MIB, 6 * MIB)])
        self.client.at_once = True
        self.dirty.mark(0, 6 * MIB)
        self.dirty.mark(10 * MIB, 6 * MIB)
        with mock.patch.object(
            Image, "extent_at", autospec=True, side_effect=Image.extent_at
        ) as ask:
            self.successResultOf(self.begin(copier.send_dirty()))
        self.assertEqual([call.args[1] for call in ask.call_args_list], [0, 10 * MIB])
        self.assert_equal_images_in([(0, 6 * MIB), (10 * MIB, 6 * MIB)])

    def test_what_becomes_a_hole_during_a_walk_is_sent_as_what_it_reads_as(self) -> None:
        copier = self.make(4 * MIB, [(0, 4 * MIB)])
        self.dirty.mark(0, 4 * MIB)
        self.limit.bytes_per_second = MIB
        sending = self.begin(copier.send_dirty())  # sends the first, and waits
        self.image.zero(2 * MIB, MIB, may_punch=True)
        self.dirty.mark(2 * MIB, MIB)
        self.client.at_once = True
        self.limit.bytes_per_second = 0
        self.clock.advance(RECHECK_SECONDS)
        self.client.answer_all()
        self.successResultOf(sending)
        self.assert_equal_images()
        self.assertEqual(self.dirty.count, 0)

    def test_what_becomes_data_during_a_walk_is_not_taken_for_a_hole(self) -> None:
        copier = self.make(3 * MIB, [])
        self.dirty.mark(0, MIB)
        self.dirty.mark(2 * MIB, MIB)
        self.client.writable = False
        sending = self.begin(copier.send_dirty())  # has looked at the first, and waits
        self.change(2 * MIB, b"d" * BLOCK)
        self.client.drain()
        self.client.answer_all()
        self.successResultOf(sending)
        self.assertEqual(self.dirty.count, 0)
        self.assert_equal_images_in([(0, MIB), (2 * MIB, MIB)])

    def test_flush_is_left_out_where_there_is_none(self) -> None:
        copier = self.make(MIB, [], TransmissionFlag(0))
        self.successResultOf(self.begin(copier.flush()))
        self.assertEqual(self.asked(), [])
        copier = self.make(MIB, [])
        flushing = self.begin(copier.flush())
        self.assertNoResult(flushing)
        self.client.answer()
        self.successResultOf(flushing)

    def test_flush_is_not_asked_again_where_nothing_was_sent_since(self) -> None:
        copier = self.make(MIB, [(0, BLOCK)])
        self.client.at_once = True
        for walk, flushes in (
            *((copier.send_holes, 1), (copier.send_dirty, 2), (copier.send_dirty, 2)),
        ):
            self.successResultOf(self.begin(walk()))
            self.successResultOf(self.begin(copier.flush()))
            self.assertEqual([each for each, _, _ in self.asked()].count("flush"), flushes)
        self.dirty.mark(0, BLOCK)
        self.successResultOf(self.begin(copier.send_dirty()))
        self.successResultOf(self.begin(copier.flush()))
        self.assertEqual(self.asked()[-2:], [("write", 0, BLOCK), ("flush", 0, 0)])


class DirtyTests(CopierCase):
    def test_a_mark_is_gone_before_its_block_is_read(self) -> None:
        copier = self.make(MIB, [(0, MIB)])
        self.dirty.mark(0, BLOCK)
        seen: list[int] = []
        read = self.client.write_from

        def write_from(image: Image, offset: int, length: int) -> Deferred[None]:
            seen.append(self.dirty.count)
            answer = read(image, offset, length)
            self.change(0, b"y" * BLOCK)  # right after the read: a new mark
            return answer

        self.client.write_from = write_from  # type: ignore[method-assign]
        sending = self.begin(copier.send_dirty())
        self.client.answer_all()
        self.assertEqual(self.successResultOf(sending), BLOCK)
        self.assertEqual((seen, self.dirty.count), ([0], 1))

    def test_each_block_is_sent_once_in_a_walk(self) -> None:
        copier = self.make(3 * MIB, [(0, 3 * MIB)])
        self.dirty.mark(0, 3 * MIB)
        sending = self.begin(copier.send_dirty())
        while self.client.waiting:
            asked = self.client.answer()
            self.change(asked.offset, b"z" * BLOCK)
        self.assertEqual(self.successResultOf(sending), 3 * MIB)
        self.assertEqual(self.dirty.bytes, 3 * BLOCK)

    def test_the_last_block_is_sent_once_too_where_the_image_ends_within_it(self) -> None:
        size = 2 * BLOCK + 512
        copier = self.make(size, [(0, size)])
        self.dirty.mark(0, size)
        # While it is on its way: RecordedClient lets no two requests overlap.
        self.client.takes = lambda: self.change(size - 1, b"z")
        sending = self.begin(copier.send_dirty())
        self.client.takes = lambda: None
        self.client.answer_all()
        self.assertEqual(self.successResultOf(sending), size)
        self.assertEqual(list(self.dirty.runs(0, size)), [(2 * BLOCK, 512)])

    def test_what_lies_before_where_it_has_reached_is_answered_and_not_sent_again(self) -> None:
        draw = random.Random(3)
        size = 30 * MIB
        step = 64 * BLOCK
        pieces = [(at, BLOCK * draw.randrange(1, 60)) for at in range(step, size, step)]
        copier = self.make(size, pieces)
        self.begin(copier.send_holes())
        self.client.answer_all()
        sending = self.begin(copier.send_dirty())
        seen = set()
        reached = 0
        while self.client.waiting:
            asked = self.client.answer(draw.randrange(min(4, len(self.client.waiting))))
            self.assertGreaterEqual(asked.offset, reached, "it was said to be over")
            reached = copier.reached
            self.assertTrue(all(reached <= each.offset for each in self.client.waiting))
            self.change(draw.randrange(size // BLOCK) * BLOCK, b"w")
            seen.add(reached)
        self.assertGreater(len(seen), 20)
        self.successResultOf(sending)
        self.assertGreaterEqual(copier.reached, pieces[-1][0])

    def test_who_waits_for_how_far_it_has_reached_is_told_at_each_answer(self) -> None:
        copier = self.make(3 * MIB, [(0, 3 * MIB)])
        self.dirty.mark(0, 3 * MIB)
        seen: list[int] = []
        copier.advanced = lambda: seen.append(copier.reached)
        self.begin(copier.send_dirty())
        for which in (1, 1, 0):
            self.client.answer(which)
        self.assertEqual(seen, [0, 0, 3 * MIB])

    def test_a_walk_of_no_more_use_is_given_up(self) -> None:
        size = 2 * IN_FLIGHT * REQUEST_SIZE
        copier = self.make(size, [(0, size)])
        self.dirty.mark(0, size)
        sending = self.begin(copier.send_dirty())
        copier.give_up(Failure(ConnectionGone("nobody compares any more")))
        self.failureResultOf(sending).trap(ConnectionGone)
        self.assertEqual(len(self.client.asked), IN_FLIGHT)

    def test_a_walk_ends_only_when_all_is_answered(self) -> None:
        copier = self.make(4 * MIB, [(0, 4 * MIB)])
        self.dirty.mark(0, 4 * MIB)
        sending = self.begin(copier.send_dirty())
        while len(self.client.waiting) > 1:
            self.client.answer(-1)
            self.assertNoResult(sending)
        self.client.answer()
        self.assertEqual(self.successResultOf(sending), 4 * MIB)
        self.assertEqual(self.progress.sent, 4 * MIB)

    def test_no_more_is_in_flight_than_the_window(self) -> None:
        size = 2 * IN_FLIGHT * REQUEST_SIZE
        copier = self.make(size, [(0, size)])
        self.dirty.mark(0, size)
        sending = self.begin(copier.send_dirty())
        while self.client.waiting:
            self.assertLessEqual(len(self.client.waiting), IN_FLIGHT)
            self.client.answer(random.Random(1).randrange(len(self.client.waiting)))
        self.successResultOf(sending)
        self.assert_equal_images()

    def test_no_more_small_requests_are_in_flight_than_may_be(self) -> None:
        size = 4 * MOST_IN_FLIGHT * BLOCK
        copier = self.make(size, [(0, size)])
        for block in range(0, size, 2 * BLOCK):
            self.dirty.mark(block, BLOCK)
        sending = self.begin(copier.send_dirty())
        self.assertEqual(len(self.client.waiting), MOST_IN_FLIGHT)
        self.client.answer_all()
        self.client.answer_all()
        self.assertEqual(self.successResultOf(sending), size // 2)

    def test_a_link_that_is_full_is_waited_for(self) -> None:
        copier = self.make(2 * MIB, [(0, 2 * MIB)])
        self.dirty.mark(0, 2 * MIB)
        self.client.writable = False
        sending = self.begin(copier.send_dirty())
        self.assertEqual(self.asked(), [])
        self.client.drain()
        self.client.answer_all()
        self.successResultOf(sending)

    def test_clients_have_their_turn_however_many_small_requests_there_are(self) -> None:
        blocks = 200
        copier = self.make(2 * blocks * BLOCK, [(0, 2 * blocks * BLOCK)])
        for block in range(blocks):
            self.dirty.mark(2 * block * BLOCK, BLOCK)

        def take() -> None:
            self.clock.rightNow += SLICE_SECONDS / 4

        self.client.takes, self.client.at_once = take, True
        turns: list[int] = []
        call_later = self.clock.callLater

        def noted(delay: float, *call: Any) -> Any:
            turns.append(len(self.asked()))
            return call_later(delay, *call)

        with mock.patch.object(self.clock, "callLater", noted):
            sending = self.begin(copier.send_dirty())
            self.clock.advance(0)
        self.assertEqual(self.successResultOf(sending), blocks * BLOCK)
        self.assertLessEqual(max(b - a for a, b in itertools.pairwise([0, *turns, blocks])), 5)

    def requests(self, limit: int) -> int:
        """Return in how many requests every other of 32 blocks is sent, at 100 MiB/s."""
        copier = self.make(MIB, [(0, MIB)], limit=limit)
        self.client.at_once = True
        self.progress.rate.add(1.0, 100 * MIB)
        for block in range(16):
            self.dirty.mark(2 * block * BLOCK, BLOCK)
        sending = self.begin(copier.send_dirty())
        self.clock.advance(1)
        self.successResultOf(sending)
        return len(self.asked())

    def test_clean_blocks_are_sent_along_to_save_requests(self) -> None:
        self.assertEqual(self.requests(0), 1)

    def test_clean_blocks_are_not_sent_along_where_a_limit_counts_them(self) -> None:
        self.assertEqual(self.requests(100 * MIB), 16)

    def test_any_writes_at_any_time_are_caught_up_with(self) -> None:
        for seed in range(30):
            draw = random.Random(seed)
            copier = self.make(MIB, [(draw.randrange(64) * BLOCK, 40 * BLOCK)])
            for walk in (copier.send_holes, copier.send_dirty, copier.send_dirty):
                sending = self.begin(walk())
                while self.client.waiting:
                    if draw.randrange(2):
                        self.change(draw.randrange(256) * BLOCK, draw.randbytes(BLOCK))
                    self.client.answer(draw.randrange(len(self.client.waiting)))
                self.successResultOf(sending)
            self.client.at_once = True
            self.successResultOf(self.begin(copier.send_dirty()))
            self.assertEqual(self.dirty.count, 0)
            self.assert_equal_images()


class ColdTests(CopierCase):
    """Nothing is in memory, and the disk is done when the test says so."""

    def make_cold(self, size: int, data: list[tuple[int, int]]) -> Copier:
        copier = self.make(size, data)
        for offset, length in data:
            self.dirty.mark(offset, length)
        self.reading: list[Deferred[Sendable]] = []
        self.told: list[tuple[int, int]] = []

        def bring_in(
            _: FileStorage, offset: int, length: int, *, whole: bool
        ) -> Deferred[Sendable]:
            self.reading.append(Deferred())
            return self.reading[-1]

        self.patch(Image, "is_resident", lambda *_: False)
        self.patch(Image, "will_need", lambda _, ranges: self.told.extend(ranges))
        self.patch(FileStorage, "bring_in", bring_in)
        return copier

    def test_a_few_are_read_at_once_and_sent_when_they_are(self) -> None:
        copier = self.make_cold(16 * MIB, [(0, 16 * MIB)])
        sending = self.begin(copier.send_dirty())
        for done in range(16):
            self.assertEqual(len(self.reading), min(MOST_READING + done, 16))
            self.assertEqual(len(self.client.asked), done)
            self.reading[done].callback((self.image, []))
        self.client.answer_all()
        self.assertEqual(self.successResultOf(sending), 16 * MIB)
        self.assert_equal_images()

    def test_what_the_disk_can_not_read_ends_the_walk(self) -> None:
        copier = self.make_cold(8 * MIB, [(0, 8 * MIB)])
        sending = self.begin(copier.send_dirty())
        self.reading[1].errback(OSError(5, "Input/output error"))
        self.failureResultOf(sending, OSError)
        self.reading[0].callback((self.image, []))
        self.client.answer_all()
        self.assertEqual(len(self.reading), MOST_READING)

    def test_the_disk_is_told_of_small_pieces_before_their_turn_and_once(self) -> None:
        size, distance = 64 * MIB, 16 * BLOCK
        pieces = [(offset, 8 * BLOCK) for offset in range(0, size, distance)]
        copier = self.make_cold(size, pieces)
        sending = self.begin(copier.send_dirty())
        sent = 0
        while self.reading:
            waiting, self.reading = self.reading, []
            sent += len(waiting)
            told = sum(length for _, length in self.told)
            self.assertLessEqual(told, sent * 8 * BLOCK + 3 * READ_AHEAD // 2)
            self.assertGreaterEqual(told, min(sent * 8 * BLOCK, size // 2 - 8 * BLOCK))
            for read in waiting:
                read.callback((self.image, []))
            self.client.answer_all()
        self.successResultOf(sending)
        # The first is read when its turn comes, and no other.
        self.assertEqual(self.told, pieces[1:])
        self.assert_equal_images_in(pieces)

    def test_the_disk_is_not_told_of_what_it_reads_ahead_by_itself(self) -> None:
        copier = self.make_cold(16 * MIB, [(0, 16 * MIB)])
        sending = self.begin(copier.send_dirty())
        while self.reading:
            self.reading.pop().callback((self.image, []))
            self.client.answer_all()
        self.successResultOf(sending)
        self.assertEqual(self.told, [])

    def test_what_is_in_memory_needs_no_disk(self) -> None:
        copier = self.make_cold(MIB, [(0, BLOCK), (4 * BLOCK, BLOCK)])
        self.patch(Image, "is_resident", lambda *_: True)
        self.client.at_once = True
        self.successResultOf(self.begin(copier.send_dirty()))
        self.assertEqual((self.reading, self.told), ([], []))


class FailureTests(CopierCase):
    def test_of_any_request_ends_the_walk(self) -> None:
        for which in range(4):
            copier = self.make(4 * MIB, [(0, 4 * MIB)])
            self.dirty.mark(0, 4 * MIB)
            sending = self.begin(copier.send_dirty())
            self.client.answer(which, RequestFailed(28, "full"))
            self.client.answer_all()
            self.failureResultOf(sending, RequestFailed)

    def test_nothing_more_is_sent_after_it(self) -> None:
        size = 2 * IN_FLIGHT * REQUEST_SIZE
        copier = self.make(size, [(0, size)])
        self.dirty.mark(0, size)
        sending = self.begin(copier.send_dirty())
        self.client.answer(5, RequestFailed(5, "I/O error"))
        self.assertEqual(len(self.client.asked), IN_FLIGHT)
        self.failureResultOf(sending, RequestFailed)

    def test_of_a_zeroing_ends_it_too(self) -> None:
        copier = self.make(MIB, [])
        sending = self.begin(copier.send_holes())
        self.client.answer(0, ConnectionGone("lost"))
        self.failureResultOf(sending, ConnectionGone)

    def test_a_truncated_image_is_not_sent_as_zeroes(self) -> None:
        copier = self.make(MIB, [(0, MIB)])
        (self.folder / "disk1.img").write_bytes(b"short")
        self.failureResultOf(self.begin(copier.send_holes()), OSError)

    def test_what_comes_late_after_it_harms_nobody(self) -> None:
        copier = self.make(4 * MIB, [(0, 4 * MIB)])
        self.dirty.mark(0, 4 * MIB)
        sending = self.begin(copier.send_dirty())
        sending.cancel()
        self.failureResultOf(sending)
        while self.client.waiting:
            self.client.answer(0, ConnectionGone("given up"))
        self.assertEqual(self.flushLoggedErrors(), [])


class LimitTests(CopierCase):
    def test_is_kept_to(self) -> None:
        copier = self.make(4 * MIB, [(0, 4 * MIB)], limit=MIB)
        self.client.at_once = True
        self.dirty.mark(0, 4 * MIB)
        sending = self.begin(copier.send_dirty())
        for tenth in range(1, 60):
            self.clock.advance(0.1)
            sent = sum(length for _, _, length in self.asked())
            if sent < 4 * MIB:
                self.assertLessEqual(abs(sent / MIB - tenth * 0.1), 0.11)
        self.successResultOf(sending)

    def test_that_is_raised_is_noticed_soon(self) -> None:
        copier = self.make(4 * MIB, [(0, 4 * MIB)], limit=1000)
        self.client.at_once = True
        self.dirty.mark(0, 4 * MIB)
        sending = self.begin(copier.send_dirty())
        self.clock.advance(1.0)
        self.assertNoResult(sending)
        self.limit.bytes_per_second = 0
        self.clock.advance(RECHECK_SECONDS)
        self.successResultOf(sending)

    def test_that_is_waited_for_when_the_connection_is_lost(self) -> None:
        copier = self.make(MIB, [(0, MIB)], limit=1000)
        self.dirty.mark(0, MIB)
        sending = self.begin(copier.send_dirty())
        self.client.answer(0, ConnectionGone("lost"))
        self.clock.advance(RECHECK_SECONDS)
        self.failureResultOf(sending, ConnectionGone)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ProgressTests(SynchronousTestCase):
    def test_of_a_pass_is_told_from_that_of_all(self) -> None:
        progress = Progress(0.0)
        sizes: list[int] = []
        progress.changed = lambda: sizes.append(progress.pass_size)
        progress.begin_pass(10 * MIB)
        progress.sent += 4 * MIB
        self.assertEqual(progress.pass_sent, 4 * MIB)
        progress.begin_pass(MIB)
        self.assertEqual((progress.pass_sent, progress.sent), (0, 4 * MIB))
        self.assertEqual(sizes, [10 * MIB, MIB])
