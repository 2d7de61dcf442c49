import errno
import os
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.extents import AllData, Extent, ToldExtents, merge
from support.images import BLOCK, blank_image, random_image, sparse_image

SIZE = 64 * BLOCK


def hole(offset: int, length: int) -> Extent:
    return Extent(offset, length, data=False)


def data(offset: int, length: int) -> Extent:
    return Extent(offset, length, data=True)


class Merge(SynchronousTestCase):
    def test_nothing_stays_nothing(self) -> None:
        self.assertEqual(list(merge([])), [])

    def test_neighbours_of_one_kind_become_one(self) -> None:
        apart = [data(0, 1), data(1, 2), hole(3, 1), hole(4, 1), hole(5, 5), data(10, 1)]
        self.assertEqual(list(merge(apart)), [data(0, 3), hole(3, 7), data(10, 1)])

    @given(st.lists(st.tuples(st.integers(1, 9), st.booleans())))
    def test_every_byte_keeps_its_kind_and_no_neighbours_are_alike(
        self, pieces: list[tuple[int, bool]]
    ) -> None:
        apart: list[Extent] = []
        for length, kind in pieces:
            apart.append(Extent(apart[-1].end if apart else 0, length, kind))
        merged = list(merge(apart))
        self.assertEqual(kinds(merged), kinds(apart))
        for left, right in pairwise(merged):
            self.assertNotEqual(left.data, right.data)


def walk(fd: int, start: int, end: int) -> Iterator[Extent]:
    return ToldExtents.of(fd).walk(start, end)


def has_holes(fd: int, size: int) -> bool:
    return ToldExtents.of(fd).has_holes(size)


def kinds(sequence: list[Extent]) -> list[tuple[int, bool]]:
    return [(byte, each.data) for each in sequence for byte in range(each.offset, each.end)]


class Walk(SynchronousTestCase):
    folder_parent = "/var/tmp"

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(dir=self.folder_parent)
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "image")

    def opened(self) -> int:
        fd = os.open(self.path, os.O_RDWR)
        self.addCleanup(os.close, fd)
        return fd

    def test_data_and_holes_alternate_to_the_end(self) -> None:
        sparse_image(self.path, SIZE, iter([(8 * BLOCK, BLOCK), (32 * BLOCK, 2 * BLOCK)]))
        fd = self.opened()
        self.assertTrue(has_holes(fd, SIZE))
        self.assertEqual(
            list(walk(fd, 0, SIZE)),
            [
                hole(0, 8 * BLOCK),
                data(8 * BLOCK, BLOCK),
                hole(9 * BLOCK, 23 * BLOCK),
                data(32 * BLOCK, 2 * BLOCK),
                hole(34 * BLOCK, 30 * BLOCK),
            ],
        )

    def test_extents_are_clipped_to_the_range_to_the_byte(self) -> None:
        sparse_image(self.path, SIZE, iter([(8 * BLOCK, 4 * BLOCK)]))
        fd = self.opened()
        start, end = 8 * BLOCK - 5, 8 * BLOCK + 7
        self.assertEqual(list(walk(fd, start, end)), [hole(start, 5), data(8 * BLOCK, 7)])
        self.assertEqual(list(walk(fd, end, end + 1)), [data(end, 1)])
        self.assertEqual(list(walk(fd, end, end)), [])

    def test_a_blank_image_is_one_hole_and_a_dense_one_all_data(self) -> None:
        blank_image(self.path, SIZE)
        self.assertEqual(list(walk(self.opened(), 0, SIZE)), [hole(0, SIZE)])
        random_image(self.path, SIZE)
        fd = self.opened()
        self.assertEqual(list(walk(fd, 0, SIZE)), [data(0, SIZE)])
        self.assertFalse(has_holes(fd, SIZE))

    def test_data_that_has_not_reached_the_disk_is_data(self) -> None:
        blank_image(self.path, SIZE)
        fd = self.opened()
        os.pwrite(fd, b"x", 5 * BLOCK)
        self.assertEqual(list(walk(fd, 5 * BLOCK, 6 * BLOCK)), [data(5 * BLOCK, BLOCK)])

    def test_nothing_is_looked_up_before_it_is_asked_for(self) -> None:
        sparse_image(self.path, SIZE, iter([(0, BLOCK)]))
        fd = self.opened()
        steps = walk(fd, 0, SIZE)
        self.assertEqual(next(steps), data(0, BLOCK))
        os.pwrite(fd, b"x", 2 * BLOCK)
        self.assertEqual(next(steps), hole(BLOCK, BLOCK))
        self.assertEqual(next(steps), data(2 * BLOCK, BLOCK))

    def test_a_file_cut_short_is_an_error_and_not_a_hole(self) -> None:
        for length in (0, 4 * BLOCK, SIZE - 1):
            for make in (random_image, blank_image):
                make(self.path, SIZE)
                fd = self.opened()
                os.ftruncate(fd, length)
                error = self.assertRaises(OSError, list, walk(fd, 0, SIZE))
                self.assertEqual(error.errno, errno.EIO)
                self.assertIn("truncated", str(error))


class WalkInMemory(Walk):
    folder_parent = "/dev/shm"


class WithoutHelpFromTheKernel(SynchronousTestCase):
    def answering(self, number: int) -> None:
        def lseek(*args: int) -> int:
            raise OSError(number, os.strerror(number))

        self.patch(os, "lseek", lseek)

    def test_all_is_data_where_holes_are_not_known(self) -> None:
        self.answering(errno.EINVAL)
        self.assertEqual(list(walk(0, 100, 900)), [data(100, 800)])
        self.assertFalse(has_holes(0, 900))

    def test_data_that_goes_away_between_two_questions_is_a_hole(self) -> None:
        answers = [200, 200, 300, 900]  # data at 200; no more; data at 300, up to the end
        self.patch(os, "lseek", lambda *_: answers.pop(0))
        found = list(merge(walk(0, 100, 900)))
        self.assertEqual(found, [hole(100, 200), data(300, 600)])

    def test_other_errors_are_told(self) -> None:
        self.answering(errno.EIO)
        self.assertRaises(OSError, list, walk(0, 100, 900))


class WithoutTrust(SynchronousTestCase):
    def test_all_is_data_and_stays_so(self) -> None:
        extents = AllData()
        self.assertEqual(list(extents.walk(100, 900)), [data(100, 800)])
        self.assertEqual(list(extents.walk(900, 900)), [])
        self.assertEqual(extents.next_data(100, 900), 100)
        self.assertFalse(extents.has_holes(900))
        self.assertFalse(extents.may_come)
