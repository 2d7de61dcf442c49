import ctypes
import errno
import os
import tempfile
import time
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.kernel import calls as linux


class Fallocate(SynchronousTestCase):
    def test_a_signal_does_not_end_it_early(self) -> None:
        errors = [errno.EINTR, errno.EINTR, 0]

        def interrupted(*_: int) -> int:
            ctypes.set_errno(errors[0])
            return -1 if errors.pop(0) else 0

        self.patch(linux, "_fallocate", interrupted)
        linux.fallocate(0, 0, 0, 1)
        self.assertEqual(errors, [])

    def test_any_other_error_is_raised_with_its_number(self) -> None:
        error = self.assertRaises(OSError, linux.fallocate, -1, 0, 0, 1)
        self.assertEqual(error.errno, errno.EBADF)

    def test_offsets_have_64_bits(self) -> None:
        with tempfile.TemporaryFile(dir="/var/tmp") as file:
            file.truncate(1 << 40)
            linux.fallocate(file.fileno(), linux.FALLOC_FL_KEEP_SIZE, (1 << 40) - 4096, 4096)
            self.assertRaises(OSError, linux.fallocate, file.fileno(), 0, -1, 1)


class SyncFileRange(SynchronousTestCase):
    FLAGS = linux.SYNC_FILE_RANGE_WAIT_BEFORE | linux.SYNC_FILE_RANGE_WRITE

    def test_begins_with_all_there_is(self) -> None:
        with tempfile.TemporaryFile(dir="/var/tmp") as file:
            file.truncate(1 << 40)
            file.seek((1 << 40) - 4096)
            file.write(b"x" * 4096)
            file.flush()
            linux.sync_file_range(file.fileno(), 0, 0, self.FLAGS)
            linux.sync_file_range(file.fileno(), (1 << 40) - 4096, 4096, self.FLAGS)

    def test_errors_have_their_number(self) -> None:
        for args, number in (((-1, 0, 0, 0), errno.EBADF), ((0, -1, 0, 0), errno.EINVAL)):
            error = self.assertRaises(OSError, linux.sync_file_range, *args)
            self.assertEqual(error.errno, number)


class Tmpfs(SynchronousTestCase):
    def test_it_is_told_from_what_is_not(self) -> None:
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            self.assertTrue(linux.is_tmpfs(file.fileno()))
        with open("/proc/self/stat") as proc:
            self.assertFalse(linux.is_tmpfs(proc.fileno()))
        self.assertFalse(linux.is_tmpfs(-1))


class Mapping(SynchronousTestCase):
    def test_pages_that_were_written_are_in_core(self) -> None:
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            file.truncate(3 * linux.PAGE)
            file.seek(linux.PAGE)
            file.write(b"x")
            file.flush()
            address = linux.map_file(file.fileno(), 3 * linux.PAGE)
            self.assertEqual(linux.pages_in_core(address, 3 * linux.PAGE)[1], 1)
            self.assertEqual(len(linux.pages_in_core(address, linux.PAGE + 1)), 2)
            linux.unmap(address, 3 * linux.PAGE)

    def test_errors_have_their_number(self) -> None:
        for call, args, number in (
            (linux.map_file, (-1, linux.PAGE), errno.EBADF),
            (linux.pages_in_core, (1, linux.PAGE), errno.EINVAL),
            (linux.unmap, (1, linux.PAGE), errno.EINVAL),
        ):
            self.assertEqual(self.assertRaises(OSError, call, *args).errno, number)


class BirthTime(SynchronousTestCase):
    def test_it_is_when_the_file_was_made_and_stays(self) -> None:
        before = time.time_ns()
        with tempfile.NamedTemporaryFile() as file:
            born = linux.birth_time(file.name)
            if born is None:
                raise SkipTest("this filesystem does not know")
            # The kernel's clock for files ticks a few hundred times a second.
            self.assertLess(abs(born - before), 5 * 10**9)
            os.utime(file.name, (0, 0))
            self.assertEqual(linux.birth_time(file.name), born)

    def test_of_nothing_there_is_none(self) -> None:
        self.assertIsNone(linux.birth_time("/nothing/there"))
