"""Comparing with a destination: what is claimed, and what clients may do meanwhile, at every point
of every exchange.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import MigrationError, RequestFailed
from flexmigrate.image.file import Image
from flexmigrate.image.file_storage import FileStorage
from flexmigrate.migration.comparison import verifier
from flexmigrate.migration.comparison.comparer import fault_in, judge, tell
from flexmigrate.migration.comparison.digests import ImageDigest, digests_of, image_digest
from flexmigrate.migration.comparison.verifier import Verifier
from flexmigrate.migration.dirty_map import DirtyMap
from flexmigrate.migration.source.progress import Progress
from flexmigrate.testing.threads import InlineClock, InlineThreads
from flexmigrate.wire.handover import (
    ZEROES_DIGEST,
    Claim,
    PrivateCommand,
    encode_verdicts,
    parse_claims,
)

MIB = 1024 * 1024
BLOCK = 4096
SIZE = 6 * MIB + 512
DATA = ((0, 2 * MIB), (4 * MIB + BLOCK, MIB))


class Destination:
    """Answers as a destination does, when it is told to."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.digest = ImageDigest(image.size)
        self.claims: list[Claim] = []
        self.waiting: list[tuple[list[Claim], Deferred[bytes]]] = []
        self.at_once = True
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[], object] = lambda: None

    def private(
        self, command: PrivateCommand, offset: int = 0, length: int = 0, payload: bytes = b""
    ) -> Deferred[bytes]:
        assert command is PrivateCommand.VERIFY
        claims = parse_claims(payload)
        assert fault_in(claims, self.image.size) is None
        self.claims += claims
        answer: Deferred[bytes] = Deferred()
        self.waiting.append((claims, answer))
        if self.at_once:
            self.answer()
        return answer

    def answer(self) -> None:
        claims, answer = self.waiting.pop(0)
        self.before()
        verdicts = judge(self.image, claims)
        for claim, equal in zip(claims, verdicts, strict=True):
            if equal:
                tell(self.digest, claim)
        self.after()
        answer.callback(encode_verdicts(verdicts))


class VerifierCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.numbers = itertools.count()
        self.prepare()

    def prepare(self, size: int = SIZE, data: tuple[tuple[int, int], ...] = DATA) -> None:
        """Make an image with *data*, and a copy of it at the destination."""
        self.image = self.make("image", size, data)
        self.copy = self.make("copy", size, data)
        self.destination = Destination(self.copy)
        self.dirty = DirtyMap(size)
        self.progress = Progress(0.0)
        self.turns = 0
        self.verifier = self.verify()

    def make(self, name: str, size: int, data: tuple[tuple[int, int], ...]) -> Image:
        path = self.folder / f"{name}{next(self.numbers)}"
        with path.open("wb") as file:
            file.truncate(size)
            for offset, length in data:
                file.seek(offset)
                file.write(random.Random(offset).randbytes(length))
        image = Image.open(str(path))
        self.addCleanup(image.close)
        return image

    def verify(self, *, everything: bool = True) -> Verifier:
        clock: Any = InlineClock()
        self.clock = clock
        threads: Any = InlineThreads()
        return Verifier(
            FileStorage(self.image, clock, threads),
            self.image,
            self.destination,
            self.dirty,
            self.progress,
            clock,
            lambda: self.turns,
            everything=everything,
        )

    def change(self, offset: int, data: bytes) -> None:
        """Do what a client's write does."""
        self.image.write(data, offset)
        self.dirty.mark(offset, len(data))

    def send(self) -> None:
        """Do what a pass does."""
        while (run := self.dirty.take(MIB)) is not None:
            self.verifier.sent(*run)
            self.copy.write(self.image.read(*run), run[0])

    def compare(self) -> bool:
        return self.successResultOf(Deferred.fromCoroutine(self.verifier.compare()))

    def find(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.verifier.find()))

    def runs(self) -> list[tuple[int, int]]:
        return list(self.dirty.runs(0, self.image.size))

    def assert_equal(self) -> None:
        size = self.image.size
        self.assertEqual((self.dirty.count, self.verifier.unverified.count), (0, 0))
        self.assertEqual(self.image.read(0, size), self.copy.read(0, size))
        self.assertEqual(self.verifier.digest.text, self.destination.digest.text)


class CompareTests(VerifierCase):
    def test_equal_images_are_found_equal_and_have_one_digest(self) -> None:
        self.assertTrue(self.compare())
        self.assert_equal()
        self.assertEqual(self.progress.compared, SIZE)
        self.assertEqual(self.verifier.digest.text, image_digest(self.image))
        self.assertEqual(sum(each.length for each in self.destination.claims), SIZE)

    def test_holes_are_claimed_as_such_and_at_length(self) -> None:
        self.prepare(300 * MIB, ((0, BLOCK), (299 * MIB, BLOCK)))
        self.assertTrue(self.compare())
        holes = [each for each in self.destination.claims if each.is_zeroes]
        self.assertEqual(sum(each.length for each in holes), 298 * MIB)
        self.assertEqual(max(each.length for each in holes), 64 * MIB)
        self.assertEqual(self.verifier.digest.text, image_digest(self.copy))

    def test_a_single_bit_is_found_wherever_it_is(self) -> None:
        for offset in (0, MIB - 1, MIB, 3 * MIB, 4 * MIB + BLOCK, SIZE - 1):
            self.verifier = self.verify()
            (byte,) = self.copy.read(offset, 1)
            self.copy.write(bytes([byte ^ 1]), offset)
            self.assertFalse(self.compare())
            ((begin, length),) = self.runs()
            self.assertTrue(begin <= offset < begin + length)
            self.send()
            self.assertTrue(self.compare())
        self.flushLoggedErrors()

    def test_what_is_dirty_is_not_compared_until_it_was_sent(self) -> None:
        for offset in (0, BLOCK, MIB - BLOCK, 3 * MIB, SIZE - 512):
            self.change(offset, b"new" * 100)
        self.assertTrue(self.compare())
        for claim in self.destination.claims:
            self.assertIsNone(next(self.dirty.runs(claim.offset, claim.length), None))
        self.destination.claims.clear()
        self.send()
        self.assertTrue(self.compare())
        self.assert_equal()
        self.assertEqual(sum(each.length for each in self.destination.claims), 4 * BLOCK + 512)

    def test_without_everything_only_what_was_sent_is_compared(self) -> None:
        self.verifier = self.verify(everything=False)
        self.assertTrue(self.compare())
        self.assertEqual(self.destination.claims, [])
        self.change(MIB, b"new")
        self.send()
        self.assertTrue(self.compare())
        ((offset, length),) = [(each.offset, each.length) for each in self.destination.claims]
        self.assertEqual((offset, length), (MIB, BLOCK))

    def test_a_destination_that_forgets_is_given_up(self) -> None:
        self.destination.before = lambda: self.copy.write(b"\0" * BLOCK, 0)
        for _ in range(verifier.MOST_REPAIRS):
            self.assertFalse(self.compare())
            self.send()
        failure = self.failureResultOf(Deferred.fromCoroutine(self.verifier.compare()))
        failure.trap(MigrationError)
        self.assertIn("does not keep what it is given", failure.getErrorMessage())

    def test_a_destination_that_cant_read_fails_it_with_the_reason(self) -> None:
        self.destination.at_once = False
        comparing = Deferred.fromCoroutine(self.verifier.compare())
        while self.destination.waiting:
            _, answer = self.destination.waiting.pop()
            answer.errback(RequestFailed(5, "Input/output error"))
        failure = self.failureResultOf(comparing)
        failure.trap(MigrationError)
        self.assertIn("could not compare", failure.getErrorMessage())

    def test_an_image_that_cant_be_read_fails_it(self) -> None:
        os.truncate(self.image.path, MIB)
        self.failureResultOf(Deferred.fromCoroutine(self.verifier.compare())).trap(OSError)


class RaceTests(VerifierCase):
    """A client's write at each point of each exchange: what differs is never called equal."""

    def test_a_write_before_and_after_each_verdict_and_each_read(self) -> None:
        self.assertEqual(len(DATA), 2)
        for point in ("claimed", "before", "after"):
            for offset in (0, BLOCK, MIB - 1, 2 * MIB, 5 * MIB, SIZE - 1):
                for first in range(3):
                    self.prepare()
                    self.disturb(point, offset, first)

    def disturb(self, point: str, offset: int, number: int) -> None:
        """Have a client write once, at *point* of the exchange *number*."""
        self.patch(verifier, "BATCH_BYTES", MIB)
        left = [number]

        def write() -> None:
            left[0] -= 1
            if left[0] == -1:
                self.change(offset, bytes([random.Random(offset + number).randrange(1, 256)]))

        if point == "claimed":
            self.destination.at_once = False
        else:
            setattr(self.destination, point, write)
        comparing = Deferred.fromCoroutine(self.verifier.compare())
        while self.destination.waiting:
            write()
            self.destination.answer()
        self.destination.at_once = True
        self.assertTrue(self.successResultOf(comparing), "a client's write is no fault")
        self.send()
        self.assertTrue(self.compare())
        self.assert_equal()

    def test_a_write_that_is_done_and_not_marked_yet(self) -> None:
        """It was read: so it differs, and is sent. It was not: so it is equal, and marked later."""
        for is_read in (True, False):
            self.prepare()
            self.destination.at_once = False
            if is_read:
                self.image.write(b"new", BLOCK)
            comparing = Deferred.fromCoroutine(self.verifier.compare())
            if not is_read:
                self.image.write(b"new", BLOCK)
            self.destination.at_once = True
            while self.destination.waiting:
                self.destination.answer()
            self.assertEqual(self.successResultOf(comparing), not is_read)
            self.dirty.mark(BLOCK, 3)  # before the client is answered
            self.send()
            self.assertTrue(self.compare())
            self.assert_equal()

    def test_writers_who_never_rest_end_no_walk_too_late(self) -> None:
        draw = random.Random(1)

        def write() -> None:
            for _ in range(20):
                self.change(draw.randrange(SIZE // BLOCK) * BLOCK, draw.randbytes(512))

        self.destination.after = write
        for _ in range(5):
            self.assertTrue(self.compare())
            self.send()
        self.destination.after = lambda: None
        self.assertTrue(self.compare())
        self.assert_equal()


class FollowTests(VerifierCase):
    """What a pass has sent is compared while it goes on."""

    SIZE = 40 * MIB + 512

    def prepare_pass(self) -> None:
        """A destination that has nothing yet, and a pass that is to bring it everything."""
        size = self.SIZE
        self.patch(verifier, "BATCH_BYTES", 2 * MIB)
        self.prepare(size, ((0, 9 * MIB + BLOCK), (21 * MIB, 19 * MIB)))
        self.copy.trim(0, size)
        for extent in self.image.extents(0, size):
            if extent.data:
                self.dirty.mark(extent.offset, extent.length)
        self.reached = 0
        self.following = Deferred.fromCoroutine(self.verifier.follow(lambda: self.reached))

    def send_next(self) -> bool:
        """Send the next MiB of the pass, and have it answered; return whether there was one."""
        run = self.dirty.take(MIB, self.reached) if self.reached < self.SIZE else None
        if run is None:
            return False
        offset, length = run
        self.reached = offset
        self.verifier.sent(offset, length)
        self.copy.write(self.image.read(offset, length), offset)
        self.reached = offset + length
        self.verifier.advanced()
        return True

    def end(self) -> None:
        self.verifier.end_following()
        self.successResultOf(self.following)

    def test_all_is_compared_once_and_behind_what_was_sent(self) -> None:
        self.prepare_pass()
        so_far = []
        while self.send_next():
            for claim in self.destination.claims:
                self.assertLessEqual(claim.offset + claim.length, self.reached)
            so_far.append(self.progress.compared)
        self.assertEqual(so_far, sorted(so_far))
        self.assertGreater(so_far[-1], self.SIZE - 8 * MIB)
        self.end()
        self.assertEqual(self.progress.compared, self.SIZE)
        self.destination.claims.clear()
        self.assertTrue(self.compare())
        self.assertEqual(self.destination.claims, [])
        self.assert_equal()
        self.assertEqual(self.verifier.digest.text, image_digest(self.image))

    def test_nothing_is_compared_before_a_batch_was_sent(self) -> None:
        self.prepare_pass()
        for _ in range(2):
            self.send_next()
            self.assertEqual(self.destination.claims, [])
        self.end()

    def test_what_differs_is_found_and_sent_again(self) -> None:
        for offset in (0, 5 * MIB, 15 * MIB, 30 * MIB):
            self.prepare_pass()
            wrong = bytes([self.image.read(offset, 1)[0] ^ 1])
            self.destination.before = lambda at=offset, byte=wrong: self.copy.write(byte, at)  # type: ignore[misc]
            while self.send_next():
                pass
            self.end()
            self.destination.before = lambda: None
            self.assertFalse(self.compare())
            ((begin, length),) = self.runs()
            self.assertTrue(begin <= offset < begin + length)
            self.send()
            self.assertTrue(self.compare())
            self.assert_equal()
        self.flushLoggedErrors()

    def test_clients_who_write_anywhere_at_any_time_are_no_fault(self) -> None:
        for seed in range(40):
            draw = random.Random(seed)
            self.prepare_pass()
            self.destination.at_once = False

            def write(draw: random.Random = draw) -> None:
                for _ in range(draw.randrange(3)):
                    where = self.reached + draw.randrange(-4 * MIB, 4 * MIB)
                    block = min(max(where, 0), self.SIZE - BLOCK) // BLOCK * BLOCK
                    self.change(block, draw.randbytes(BLOCK))

            sending = True
            while sending:
                write()
                sending = self.send_next()
                while self.destination.waiting and draw.random() < 0.6:
                    write()
                    self.destination.answer()
            self.verifier.end_following()
            while self.destination.waiting:
                write()
                self.destination.answer()
            self.successResultOf(self.following)
            self.destination.at_once = True
            self.assertTrue(self.compare(), seed)
            self.send()
            self.assertTrue(self.compare(), seed)
            self.assert_equal()

    def test_a_destination_that_cant_compare_ends_it(self) -> None:
        self.prepare_pass()
        self.destination.at_once = False
        while self.send_next():
            pass
        for _, answer in self.destination.waiting:
            answer.errback(RequestFailed(5, "Input/output error"))
        failure = self.failureResultOf(self.following)
        failure.trap(MigrationError)
        self.assertIn("could not compare", failure.getErrorMessage())

    def test_clients_that_are_at_work_have_most_of_the_time(self) -> None:
        for at_work in (True, False):
            self.prepare_pass()
            clock = self.clock

            def hash_for_a_while(image: Image, ranges: Any, busy: bool = at_work) -> list[bytes]:
                self.clock.advance(1)
                self.turns += busy
                return digests_of(image, ranges)

            self.patch(verifier, "digests_of", hash_for_a_while)
            while self.send_next():
                pass
            self.verifier.end_following()
            hashed = clock.seconds()
            if at_work:
                self.assertEqual(hashed, verifier.FOLLOW_HASHERS)
            for _ in range(100):
                clock.advance(verifier.CLIENTS_SHARE)
            self.successResultOf(self.following)
            self.assertEqual(self.progress.compared, self.SIZE)
            if not at_work:
                self.assertGreater(hashed, 5)  # all of it, without a rest

    def test_it_can_be_cancelled_at_any_time(self) -> None:
        for answered in (True, False):
            for sent in (0, 3, 12):
                self.prepare_pass()
                self.destination.at_once = answered
                for _ in range(sent):
                    self.send_next()
                self.following.cancel()
                self.failureResultOf(self.following)
                self.send_next()


class FindTests(VerifierCase):
    def test_only_what_differs_is_dirty(self) -> None:
        self.copy.write(b"old" * 10, MIB)
        self.copy.write(b"old", 3 * MIB)
        self.find()
        for offset, length in self.runs():
            self.assertNotEqual(self.image.read(offset, length), self.copy.read(offset, length))
        self.assertEqual(self.verifier.repaired, self.dirty.bytes)
        self.send()
        self.assertTrue(self.compare())
        self.assert_equal()

    def test_an_empty_copy_differs_where_there_is_data(self) -> None:
        self.copy.zero(0, SIZE, may_punch=True)
        self.find()
        for offset, length in DATA:
            self.assertEqual(sum(each for _, each in self.dirty.runs(offset, length)), length)
        self.assertIsNone(next(self.dirty.runs(2 * MIB, 2 * MIB), None))

    def test_what_was_found_equal_is_not_compared_again(self) -> None:
        self.find()
        self.destination.claims.clear()
        self.assertTrue(self.compare())
        self.assertEqual(self.destination.claims, [])
        self.assert_equal()

    def test_a_write_meanwhile_is_sent(self) -> None:
        for offset in (0, 3 * MIB, SIZE - 1):
            self.prepare()
            self.destination.after = lambda offset=offset: self.change(offset, b"\1")  # type: ignore[misc]
            self.find()
            self.destination.after = lambda: None
            self.send()
            self.assertTrue(self.compare())
            self.assert_equal()


class FaultTests(SynchronousTestCase):
    def test_claims_that_make_no_sense_are_refused(self) -> None:
        digest = b"\1" * 32
        for claim in (
            Claim(0, 0, digest),
            Claim(0, MIB + 1, digest),
            Claim(MIB - 1, 2, digest),
            Claim(SIZE, 1, digest),
            Claim(SIZE - 1, 2, ZEROES_DIGEST),
            Claim(2**64 - 1, 1, digest),
        ):
            self.assertIsNotNone(fault_in([claim], SIZE), claim)
        long = Claim(0, 64 * MIB + 1, ZEROES_DIGEST)
        self.assertIsNotNone(fault_in([long], 100 * MIB))
        whole = [Claim(at * 64 * MIB, 64 * MIB, ZEROES_DIGEST) for at in range(17)]
        self.assertIsNone(fault_in(whole[:16], 1 << 40))
        self.assertIn("at most", fault_in(whole, 1 << 40) or "")
