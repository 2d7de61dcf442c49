import errno
import os
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image import file, holes
from flexmigrate.image.file import Image
from flexmigrate.image.kernel import calls as linux
from support.images import BLOCK, allocated, blank_image, random_image

SIZE = 64 * BLOCK
DATA = b"\x01" * BLOCK
EMPTY = bytes(BLOCK)


class WithAnImage(SynchronousTestCase):
    parent = "/var/tmp"

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(dir=self.parent)
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "image")

    def dense(self) -> Image:
        return self._opened(random_image(self.path, SIZE))

    def blank(self) -> Image:
        return self._opened(blank_image(self.path, SIZE))

    def _opened(self, path: Path) -> Image:
        image = Image.open(str(path))
        self.addCleanup(image.close)
        return image

    def allocated(self, image: Image) -> int:
        os.fsync(image.fd)  # some filesystems allocate only now
        return allocated(self.path)

    def unsupported(self, *modes: int) -> None:
        """Let fallocate refuse *modes*, or all if none are named."""
        whole = linux.fallocate

        def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
            if not modes or mode in modes:
                raise OSError(errno.EOPNOTSUPP, "refused by the test")
            whole(fd, mode, offset, length)

        self.patch(linux, "fallocate", fallocate)


class ZeroesWrittenIntoHoles(WithAnImage):
    def test_a_block_of_zeroes_in_a_hole_takes_no_room(self) -> None:
        image = self.blank()
        for offset, length in ((0, BLOCK), (8 * BLOCK, 8 * BLOCK), (SIZE - 512, 512), (5, 7)):
            image.write(bytes(length), offset)
        self.assertEqual(self.allocated(image), 0)
        self.assertEqual(image.read(0, SIZE), bytes(SIZE))

    def test_data_among_zeroes_takes_its_own_room_only(self) -> None:
        image = self.blank()
        view = EMPTY * 4 + DATA + EMPTY * 6 + DATA * 2 + EMPTY
        image.write(memoryview(view), 16 * BLOCK)
        self.assertEqual(self.allocated(image), 3 * BLOCK)
        self.assertEqual(image.read(16 * BLOCK, len(view)), view)

    def test_zeroes_over_data_are_written(self) -> None:
        image = self.blank()
        image.write(DATA * 2, 8 * BLOCK)
        image.write(EMPTY * 4, 7 * BLOCK)
        self.assertEqual(image.read(0, SIZE), bytes(SIZE))
        self.assertEqual(self.allocated(image), 2 * BLOCK)

    def test_zeroes_are_looked_for_once_a_dense_image_has_got_a_hole(self) -> None:
        image = self.dense()
        before = self.allocated(image)
        image.write(EMPTY, 0)
        self.assertEqual(self.allocated(image), before)
        image.trim(0, 4 * BLOCK)
        image.write(EMPTY * 4, 0)
        self.assertEqual(self.allocated(image), before - 4 * BLOCK)

    def test_a_dense_image_is_not_searched_for_zeroes(self) -> None:
        self.patch(file, "zero_runs", lambda *_: self.fail("nobody asked for this"))
        self.dense().write(EMPTY, 0)

    def test_zeroes_for_a_truncated_image_are_an_error(self) -> None:
        image = self.blank()
        os.truncate(self.path, BLOCK)
        error = self.assertRaises(OSError, image.write, EMPTY, 8 * BLOCK)
        self.assertEqual(error.errno, errno.EIO)


class Zero(WithAnImage):
    def zeroed(self, image: Image, offset: int, length: int, *, may_punch: bool) -> None:
        before = self.path.read_bytes()
        image.zero(offset, length, may_punch=may_punch)
        expected = before[:offset] + bytes(length) + before[offset + length :]
        self.assertEqual(self.path.read_bytes(), expected)

    RANGES = (
        (0, SIZE),
        (8 * BLOCK, BLOCK),
        (9 * BLOCK + 512, 512),
        (BLOCK - 3, 6),
        (20 * BLOCK + 1, 5 * BLOCK),
        (SIZE - 1, 1),
        (BLOCK, 0),
    )

    def test_the_range_is_zero_to_the_byte_in_every_way(self) -> None:
        for may_punch in (True, False):
            for offset, length in self.RANGES:
                image = self.dense()
                self.zeroed(image, offset, length, may_punch=may_punch)
                image.close()

    def test_so_it_is_where_only_writing_will_do(self) -> None:
        self.unsupported()
        self.patch(holes, "ZEROES", bytes(1000))  # in many pieces
        for offset, length in self.RANGES:
            image = self.dense()
            self.zeroed(image, offset, length, may_punch=True)
            image.close()

    def test_punching_gives_the_room_back(self) -> None:
        image = self.dense()
        image.zero(512, SIZE - 512, may_punch=True)
        self.assertEqual(self.allocated(image), BLOCK)

    def test_without_punching_the_room_stays(self) -> None:
        image = self.dense()
        image.zero(0, SIZE, may_punch=False)
        self.assertGreaterEqual(self.allocated(image), SIZE)

    def test_without_punching_a_hole_gets_room(self) -> None:
        image = self.blank()
        image.zero(0, SIZE, may_punch=False)
        self.assertGreaterEqual(self.allocated(image), SIZE)

    def test_what_follows_the_last_sector_is_zeroed_as_well(self) -> None:
        with random_image(self.path, SIZE).open("ab") as longer:
            longer.write(b"tail")
        image = self._opened(self.path)
        for may_punch in (True, False):
            image.zero(0, image.size, may_punch=may_punch)
        self.assertEqual(self.path.read_bytes(), bytes(SIZE + len(b"tail")))

    def test_where_only_writing_would_do_fast_only_fails_and_changes_nothing(self) -> None:
        self.unsupported()
        image = self.dense()
        before = self.path.read_bytes()
        for may_punch in (True, False):
            error = self.assertRaises(
                OSError, image.zero, 0, SIZE, may_punch=may_punch, fast_only=True
            )
            self.assertEqual(error.errno, errno.ENOTSUP)
        self.assertEqual(self.path.read_bytes(), before)

    def test_fast_only_punches(self) -> None:
        image = self.dense()
        image.zero(0, SIZE, may_punch=True, fast_only=True)
        self.assertEqual(self.allocated(image), 0)

    def test_an_error_that_is_not_about_support_is_told_and_nothing_else_is_tried(self) -> None:
        def fallocate(*_: int) -> None:
            raise OSError(errno.ENOSPC, "full")

        self.patch(linux, "fallocate", fallocate)
        image = self.dense()
        before = self.path.read_bytes()
        error = self.assertRaises(OSError, image.zero, 0, SIZE, may_punch=True)
        self.assertEqual(error.errno, errno.ENOSPC)
        self.assertRaises(OSError, image.trim, 0, SIZE)
        self.assertEqual(self.path.read_bytes(), before)


class Trim(WithAnImage):
    def test_the_room_is_given_back(self) -> None:
        image = self.dense()
        image.trim(8 * BLOCK, 8 * BLOCK)
        self.assertEqual(self.allocated(image), SIZE - 8 * BLOCK)

    def test_nothing_outside_the_range_changes(self) -> None:
        image = self.dense()
        before = self.path.read_bytes()
        image.trim(BLOCK - 1, BLOCK + 2)
        image.trim(0, 0)
        after = self.path.read_bytes()
        self.assertEqual(after[: BLOCK - 1], before[: BLOCK - 1])
        self.assertEqual(after[2 * BLOCK + 1 :], before[2 * BLOCK + 1 :])

    def test_where_it_is_not_supported_it_is_no_error(self) -> None:
        self.unsupported()
        image = self.dense()
        before = self.path.read_bytes()
        image.trim(0, SIZE)
        self.assertEqual(self.path.read_bytes(), before)


class ZeroesWrittenIntoHolesInMemory(ZeroesWrittenIntoHoles):
    parent = "/dev/shm"


class ZeroInMemory(Zero):
    """On tmpfs there are holes, but no FALLOC_FL_ZERO_RANGE."""

    parent = "/dev/shm"


class TrimInMemory(Trim):
    parent = "/dev/shm"


class Granules(SynchronousTestCase):
    def test_only_whole_ones_are_inside(self) -> None:
        for offset, length, expected in (
            (0, 4096, (0, 4096)),
            (1, 4095, (1, 1)),
            (1, 8191, (4096, 8192)),
            (4095, 4098, (4096, 8192)),
            (4096, 0, (4096, 4096)),
            (5000, 10, (5000, 5000)),
        ):
            self.assertEqual(holes.inner(offset, length, 4096), expected)
        self.assertEqual(holes.inner(5, 7, 1), (5, 12))


class HolesThatWereRead(WithAnImage):
    def test_only_zeroes_without_storage_are_a_hole(self) -> None:
        image = self.blank()
        image.write(DATA, BLOCK)
        image.trim(BLOCK, BLOCK)
        image.write(b"\x01", 3 * BLOCK)
        image.write(b"\x00", 3 * BLOCK)
        self.assertTrue(image.is_hole(EMPTY, BLOCK))
        self.assertFalse(image.is_hole(EMPTY, 3 * BLOCK))
        self.assertFalse(image.is_hole(DATA, 8 * BLOCK))

    def test_zeroes_of_a_file_that_was_truncated_since_are_no_hole(self) -> None:
        image = self.blank()
        os.truncate(self.path, BLOCK)
        self.assertFalse(image.is_hole(EMPTY, 2 * BLOCK))
