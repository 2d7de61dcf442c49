"""Large folios are split where short writes go, and nowhere else; what is written is as it was."""

from __future__ import annotations

import os
import random
import struct
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from flexmigrate.image.file import Image
from flexmigrate.image.kernel import calls as linux
from flexmigrate.image.kernel import large_folios
from flexmigrate.image.kernel.large_folios import GRANULE, SHORT, TRIES, WITHIN, Folios

MIB = 1 << 20
SIZE = 4 * MIB
PAGE = linux.PAGE

# From linux/kernel-page-flags.h: the first page of a folio of several, and the others.
COMPOUND = 1 << 15 | 1 << 16


def is_large(fd: int, offset: int) -> bool:
    """Tell whether a page is one of a folio of several (proc(5): pagemap, kpageflags)."""
    address = linux.map_file(fd, PAGE, offset)
    try:
        linux.populate(address, PAGE)
        with open("/proc/self/pagemap", "rb", buffering=0) as table:
            (entry,) = struct.unpack("=Q", os.pread(table.fileno(), 8, address // PAGE * 8))
        with open("/proc/kpageflags", "rb", buffering=0) as table:
            number = entry & (1 << 55) - 1
            (flags,) = struct.unpack("=Q", os.pread(table.fileno(), 8, number * 8))
    finally:
        linux.unmap(address, PAGE)
    return bool(flags & COMPOUND)


class OnADisk(SynchronousTestCase):
    """With a filesystem that has them; the image is written by 1 MiB, and on the disk."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(dir="/var/tmp")
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "image"
        self.content = bytearray(random.Random(4).randbytes(SIZE))
        with path.open("wb", buffering=0) as file:
            for offset in range(0, SIZE, MIB):
                file.write(self.content[offset : offset + MIB])
            os.fsync(file.fileno())
        self.image = Image.open(str(path))
        self.addCleanup(self.image.close)
        self.path = path

    def need_large_folios(self) -> None:
        if os.geteuid():
            raise SkipTest("only root is told which pages are one folio")
        if self.image._folios is None or not is_large(self.image.fd, 0):
            raise SkipTest("the page cache has no large folios here")

    def write(self, offset: int, length: int) -> None:
        data = random.Random(offset).randbytes(length)
        self.image.write(data, offset)
        self.content[offset : offset + length] = data

    def test_a_short_write_splits_its_folio_and_a_long_one_does_not(self) -> None:
        self.need_large_folios()
        self.write(MIB, SHORT + PAGE)
        self.assertTrue(is_large(self.image.fd, MIB))
        self.write(2 * MIB + 5 * PAGE, PAGE)
        for offset in range(0, 1 << GRANULE, PAGE):
            self.assertFalse(is_large(self.image.fd, 2 * MIB + offset), offset)
        self.assertTrue(is_large(self.image.fd, 0))

    def test_one_that_waits_to_be_written_back_is_split_once_it_was(self) -> None:
        self.need_large_folios()
        # Whatever the machine does meanwhile, which may write it back.
        waiting = self.patch(linux, "cached", lambda fd, offset, length: (1, 1))
        self.patch(large_folios, "SLOW", 0)
        self.write(PAGE, PAGE)
        self.assertTrue(is_large(self.image.fd, PAGE))
        waiting.restore()
        self.image.flush()
        self.write(PAGE, PAGE)
        self.assertFalse(is_large(self.image.fd, PAGE))

    def test_where_the_kernel_does_not_say_what_is_clean_it_is_split_all_the_same(self) -> None:
        self.need_large_folios()

        def refuse(*arguments: int) -> tuple[int, int]:
            raise PermissionError(1, "Operation not permitted")

        self.patch(linux, "cached", refuse)
        self.write(PAGE, PAGE)
        self.assertFalse(is_large(self.image.fd, PAGE))

    def test_what_trims_zeroes_or_drops_a_range_makes_it_unknown(self) -> None:
        image = self.image
        if image._folios is None:
            raise SkipTest("nobody looks for folios here")
        marks = image._folios.marks
        for change in (
            lambda: image.trim(0, MIB),
            lambda: image.zero(0, MIB, may_punch=True),
            lambda: image.drop_cached([(0, MIB)]),
            lambda: image.write(bytes([1]) * MIB, 0),
        ):
            marks[:32] = b"\1" * 32
            change()
            self.assertEqual(marks[:32], bytes(16) + b"\1" * 16)

    def test_what_was_read_from_the_disk_is_looked_at_again(self) -> None:
        self.write(MIB, PAGE)
        marks = self.image._folios.marks if self.image._folios else None
        if marks is None or not marks[MIB >> GRANULE]:
            raise SkipTest("nobody looks for folios here")
        self.image.make_resident(0, MIB)
        self.assertTrue(marks[MIB >> GRANULE])
        self.image.make_resident(0, 2 * MIB)
        self.assertFalse(marks[MIB >> GRANULE])

    def test_every_byte_is_what_was_written_last(self) -> None:
        rng = random.Random(9)
        for _ in range(2000):
            length = rng.choice((512, PAGE, 3 * PAGE, SHORT, SHORT + 1, MIB))
            self.write(rng.randrange(0, (SIZE - length) // 512 + 1) * 512, length)
            if not rng.randrange(100):
                self.image.flush()
        self.assertTrue(self.path.read_bytes() == self.content)

    def test_nothing_of_it_stays_mapped(self) -> None:
        before = Path("/proc/self/maps").read_text().count(str(self.path))
        self.write(0, PAGE)
        self.assertEqual(Path("/proc/self/maps").read_text().count(str(self.path)), before)


class Recorded(SynchronousTestCase):
    """With a kernel that answers as the test says, and tells what it was asked."""

    cached = (1, 0)
    in_core = b"\1"
    took = 0.0
    split = 0.0

    def setUp(self) -> None:
        self.asked: list[str] = []
        self.now = 0.0
        self.patch(linux, "cached", self.look)
        self.patch(linux, "is_ext4", lambda fd: True)
        self.patch(linux, "map_file", lambda fd, length, offset: 1 << 30)
        self.patch(linux, "pages_in_core", lambda address, length: self.in_core)
        self.patch(linux, "unmap", lambda address, length: self.asked.append("unmap"))
        self.patch(linux, "populate", lambda address, length: self.asked.append("populate"))
        self.patch(linux, "make_cold", self.make_cold)
        self.patch(large_folios, "pwrite", self.pwrite)
        self.patch(large_folios, "perf_counter", lambda: self.now)
        made = Folios.of(0, 1 << 40)
        assert made is not None
        self.folios = made
        self.addCleanup(made.close)

    def look(self, fd: int, offset: int, length: int) -> tuple[int, int]:
        return self.cached

    def make_cold(self, address: int, length: int) -> None:
        self.asked.append("cold")
        self.now += self.split

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self.asked.append("write")
        self.now += self.took
        return len(data)

    def write(self, offset: int = 0) -> bool:
        """Return whether the place has a mark then."""
        self.asked.clear()
        self.assertEqual(self.folios.write(b"data", offset), 4)
        return bool(self.folios.marks[offset >> GRANULE & WITHIN])

    def test_a_clean_page_is_split_from_its_folio_before_it_is_written(self) -> None:
        self.assertTrue(self.write())
        self.assertEqual(self.asked, ["populate", "cold", "unmap", "write"])

    def test_one_that_is_not_cached_is_written_and_nothing_is_known_of_its_neighbours(self) -> None:
        self.cached = (0, 0)
        self.assertFalse(self.write())
        self.assertEqual(self.asked, ["write"])

    def test_one_whose_reading_failed_or_is_not_over_is_not_waited_for(self) -> None:
        self.in_core = b"\0"
        self.assertFalse(self.write())
        self.assertEqual(self.asked, ["unmap", "write"])

    def test_a_write_of_several_pages_may_take_longer(self) -> None:
        self.cached = (1, 1)
        self.took = 6e-6
        self.assertFalse(self.write())
        self.asked.clear()
        self.folios.write(bytes(3 * PAGE), 0)
        self.assertTrue(self.folios.marks[0])

    def test_of_one_that_is_not_written_back_the_time_tells(self) -> None:
        self.cached = (1, 1)
        self.took = 20e-6
        self.assertFalse(self.write())
        self.took = 2e-6
        self.assertTrue(self.write())
        self.assertEqual(self.asked, ["write"])

    def test_what_the_kernel_refuses_costs_no_write(self) -> None:
        def refuse(*arguments: int) -> None:
            raise OSError(14, "Bad address")

        for name in ("cached", "map_file", "pages_in_core", "populate", "make_cold"):
            patched = self.patch(linux, name, refuse)
            self.folios.forget(0, 1)
            self.assertTrue(self.write(), name)
            self.assertIn("write", self.asked)
            patched.restore()

    def test_an_error_of_the_write_is_the_answer(self) -> None:
        def fail(fd: int, data: bytes, offset: int) -> int:
            raise OSError(28, "No space left on device")

        self.patch(large_folios, "pwrite", fail)
        for self.cached in ((1, 0), (1, 1), (0, 0)):
            self.folios.forget(0, 1)
            self.assertEqual(self.assertRaises(OSError, self.folios.write, b"x", 0).errno, 28)

    def test_where_no_folio_is_large_it_is_left_off_for_longer_and_longer(self) -> None:
        self.split = 2e-6
        tried = []
        for number in range(20_000):
            self.write(number << GRANULE)
            tried.append("cold" in self.asked)
        rests = "".join(".X"[each] for each in tried).split("X" * TRIES)
        self.assertEqual([len(rest) for rest in rests[:3]], [0, 4096, 8192])

    def test_where_some_are_it_goes_on(self) -> None:
        for number in range(10_000):
            self.split = 2e-6 if number % 32 else 100e-6
            self.write(number << GRANULE)
            self.assertIn("cold", self.asked)

    def test_beyond_a_tebibyte_places_share_marks(self) -> None:
        self.assertTrue(self.write((1 << 40) + (5 << GRANULE)))
        self.assertTrue(self.folios.marks[5])

    def test_a_long_range_is_forgotten_to_the_mark(self) -> None:
        all_of_it = 5 * PAGE
        for first, last in ((0, all_of_it), (1, all_of_it - 1), (PAGE, 3 * PAGE), (7, PAGE + 7)):
            self.folios.marks[:all_of_it] = b"\1" * all_of_it
            self.folios.forget(first << GRANULE, (last - first) << GRANULE)
            kept = b"\1" * first + bytes(last - first) + b"\1" * (all_of_it - last)
            self.assertEqual(self.folios.marks[:all_of_it], kept, (first, last))

    def test_a_range_beyond_the_last_mark_goes_on_from_the_first(self) -> None:
        for offset, length in (((1 << 40) - MIB, 2 * MIB), (0, 3 << 39)):
            self.folios.marks[5] = 1
            self.folios.forget(offset, length)
            self.assertEqual(self.folios.marks[5], 0)

    def test_to_forget_what_was_never_known_takes_no_memory(self) -> None:
        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

        before = resident()
        self.folios.forget(0, 1 << 40)
        self.assertLess(resident() - before, 4 * MIB)

    def test_a_range_is_forgotten_and_nothing_beside_it(self) -> None:
        self.folios.marks[:8] = b"\1" * 8
        self.folios.forget((2 << GRANULE) + 1, 2 << GRANULE)
        self.assertEqual(self.folios.marks[:8], b"\1\1\0\0\0\1\1\1")


class NoMemory:
    """Stands for the module mmap."""

    MAP_PRIVATE = MAP_ANONYMOUS = 0

    @staticmethod
    def mmap(*arguments: int, **options: int) -> None:
        raise OSError(12, "Cannot allocate memory")


class Elsewhere(SynchronousTestCase):
    def test_there_are_none_where_all_are_alike_or_where_there_is_no_memory(self) -> None:
        with tempfile.NamedTemporaryFile() as file:
            self.patch(linux, "is_ext4", lambda fd: False)
            self.assertIsNone(Folios.of(file.fileno(), MIB))
            self.patch(linux, "is_ext4", lambda fd: True)
            self.patch(large_folios, "mmap", NoMemory)
            self.assertIsNone(Folios.of(file.fileno(), MIB))

    def test_a_reader_has_none(self) -> None:
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            file.truncate(MIB)
            image = Image.open(file.name, read_only=True)
            self.addCleanup(image.close)
            self.assertIsNone(image._folios)
