import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.migration.destination import coverage
from flexmigrate.migration.destination.coverage import Coverage

SIZE = 64
RANGES = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)


def covering(size: int, *ranges: tuple[int, int]) -> Coverage:
    made = Coverage(size)
    for offset, length in ranges:
        made.mark(offset, length)
    return made


class Completeness(SynchronousTestCase):
    def test_nothing_is_not_complete_even_of_an_empty_image(self) -> None:
        self.assertFalse(Coverage(8192).complete)
        self.assertFalse(Coverage(0).complete)

    def test_every_byte_once_in_any_order_is_complete(self) -> None:
        pieces = [(offset, 512) for offset in range(0, 65536, 512)]
        random.Random(1).shuffle(pieces)
        attempt = covering(65536, *pieces[:-1])
        self.assertFalse(attempt.complete)
        attempt.mark(*pieces[-1])
        self.assertTrue(attempt.complete)
        self.assertEqual((attempt.covered, attempt.writes), (65536, 128))

    def test_one_missing_byte_anywhere_is_not_complete(self) -> None:
        for missing in (0, 1, 4095, 8191):
            attempt = covering(8192, (missing + 1, 8191 - missing), *[(0, missing)][: missing > 0])
            self.assertEqual((attempt.covered, attempt.complete), (8191, False))

    def test_the_same_bytes_twice_are_not_the_bytes_between(self) -> None:
        self.assertFalse(covering(8192, (0, 4096), (0, 4096)).complete)

    def test_a_failure_spoils_the_attempt_for_good_and_the_first_one_is_told(self) -> None:
        attempt = covering(8192, (0, 8192))
        attempt.failed(512, 1024, OSError(28, "No space left on device"))
        attempt.failed(0, 1, OSError(5, "Input/output error"))
        attempt.mark(0, 8192)
        self.assertFalse(attempt.complete)
        self.assertEqual(
            attempt.spoiled, "writing 1024 bytes at 512 failed: [Errno 28] No space left on device"
        )


class AgainstASetOfBytes(SynchronousTestCase):
    @given(
        st.lists(RANGES, max_size=30), st.sampled_from([1, 4, 8, 64, 128]), st.integers(57, SIZE)
    )
    def test_any_sequence_covers_what_a_set_covers(
        self, ranges: list[tuple[int, int]], block_size: int, size: int
    ) -> None:
        attempt, model = Coverage(size, block_size), set[int]()
        for offset, wanted in ranges:
            length = min(wanted, size - offset)
            if length <= 0:
                continue
            attempt.mark(offset, length)
            model.update(range(offset, offset + length))
            self.assertEqual(attempt.covered, len(model))
            self.assertEqual(attempt.complete, len(model) == size)

    @given(st.lists(RANGES, max_size=30))
    def test_what_is_forgotten_is_never_claimed(self, ranges: list[tuple[int, int]]) -> None:
        self.patch(coverage, "MAX_FRAGMENTS", 4)
        self.patch(coverage, "_KEPT", 3)
        attempt, model = Coverage(SIZE, 4), set[int]()
        for offset, length in ranges:
            attempt.mark(offset, length)
            model.update(range(offset, offset + length))
            self.assertLessEqual(attempt.covered, len(model))
            self.assertLessEqual(len(attempt._parts), 4)


class Fragments(SynchronousTestCase):
    def test_an_image_of_any_number_of_extents_is_complete_once_all_have_come(self) -> None:
        # First all the holes, then all the data: the worst order, in whole blocks.
        blocks = 4 * coverage.MAX_FRAGMENTS
        attempt = Coverage(blocks * 4096)
        for first in (0, 1):
            for block in range(first, blocks, 2):
                attempt.mark(block * 4096, 4096)
        self.assertTrue(attempt.complete)

    def test_the_least_covered_blocks_are_forgotten_when_too_many_are_covered_in_part(self) -> None:
        self.patch(coverage, "MAX_FRAGMENTS", 4)
        self.patch(coverage, "_KEPT", 3)
        attempt = Coverage(1000, 64)
        for offset, length in ((0, 10), (100, 1), (200, 30), (300, 2), (400, 20)):
            attempt.mark(offset, length)
        self.assertEqual(attempt.covered, 60)
        attempt.mark(0, 1000)
        self.assertTrue(attempt.complete)

    def test_memory_is_bounded_under_scattered_writes(self) -> None:
        attempt = Coverage(1 << 40)
        for index in range(coverage.MAX_FRAGMENTS + 10):
            attempt.mark(index * 8192, 512)
        self.assertLessEqual(len(attempt._parts), coverage.MAX_FRAGMENTS)
        self.assertEqual(attempt.covered, len(attempt._parts) * 512)
        self.assertLessEqual(len(attempt._whole), coverage.MAX_BITS)

    def test_the_bits_of_a_huge_image_are_bounded(self) -> None:
        self.assertLessEqual(len(Coverage(1 << 45)._whole), coverage.MAX_BITS)
