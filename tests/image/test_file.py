import errno
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from flexmigrate.errors import ImageError
from flexmigrate.image import exact, file, opening
from flexmigrate.image.disk import SYSTEM
from flexmigrate.image.file import SCRATCH, Image
from flexmigrate.image.kernel import calls as linux
from support.images import BLOCK, blank_image, random_image
from support.processes import PATIENCE

SIZE = 64 * BLOCK


class WithAFolder(SynchronousTestCase):
    parent = "/var/tmp"

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(dir=self.parent)
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "image"

    def image(self, path: Path | None = None, *, read_only: bool = False) -> Image:
        image = Image.open(str(path or self.path), read_only=read_only)
        self.addCleanup(image.close)
        return image

    def refused(self, path: Path, *, read_only: bool = False) -> str:
        """The text of the error that opening *path* gives."""
        error = self.assertRaises(ImageError, Image.open, str(path), read_only=read_only)
        self.assertIn(str(path), str(error))
        return str(error)

    def assert_fails(self, number: int, call: Callable[..., Any], *args: Any) -> None:
        self.assertEqual(self.assertRaises(OSError, call, *args).errno, number)


class Opening(WithAFolder):
    def test_it_is_as_large_as_it_is(self) -> None:
        for length in (0, 1, 511, 512, BLOCK + 700):
            image = self.image(blank_image(self.path, length))
            self.assertEqual(image.size, length)
            image.close()

    def test_errors_name_the_path_and_the_cause(self) -> None:
        self.assertIn("No such file", self.refused(self.folder / "missing"))
        self.assertIn("neither a regular file nor a block device", self.refused(self.folder))
        self.assertIn("neither a regular file", self.refused(Path("/dev/null")))
        os.mkfifo(self.path)
        self.assertIn("neither a regular file", self.refused(self.path))

    def test_a_second_server_cannot_open_it_for_writing_or_reading(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        self.assertIn("in use by another server", self.refused(self.path))
        self.assertIn("in use by another server", self.refused(self.path, read_only=True))
        image.close()
        self.image().close()

    def test_readers_share_it_and_keep_writers_out(self) -> None:
        blank_image(self.path, SIZE)
        self.image(read_only=True)
        self.image(read_only=True)
        self.assertIn("in use by another server", self.refused(self.path))

    def test_a_refused_opening_leaves_no_descriptor_behind(self) -> None:
        self.image(blank_image(self.path, SIZE))
        before = sorted(os.listdir("/proc/self/fd"))
        self.refused(self.path)
        self.refused(self.folder)
        self.assertEqual(sorted(os.listdir("/proc/self/fd")), before)

    def test_an_image_that_is_replaced_meanwhile_is_not_served(self) -> None:
        blank_image(self.path, SIZE)
        other = blank_image(self.folder / "other", SIZE)
        self.patch(opening.locks, "lock", lambda *_, **__: os.replace(other, self.path))
        self.assertIn("was replaced", self.refused(self.path))

    def test_an_image_that_is_unlinked_meanwhile_is_not_served(self) -> None:
        blank_image(self.path, SIZE)
        self.patch(opening.locks, "lock", lambda *_, **__: os.unlink(self.path))
        self.assertIn("No such file", self.refused(self.path))

    def test_a_read_only_image_cannot_be_written(self) -> None:
        image = self.image(random_image(self.path, SIZE), read_only=True)
        self.assert_fails(errno.EBADF, image.write, b"x", 0)

    def test_closing_twice_closes_once(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        image.close()
        with self.path.open("rb") as other:  # takes the number that was freed
            image.close()
            self.assertEqual(other.read(1), b"\x00")


class ReadingAndWriting(WithAFolder):
    def test_what_was_written_is_read_by_every_way(self) -> None:
        image = self.image(random_image(self.path, SIZE))
        content = os.urandom(3 * BLOCK + 5)
        image.write(memoryview(content), 1234)
        image.flush()
        view = memoryview(bytearray(len(content)))
        image.read_into(view, 1234)
        self.assertEqual(view, content)
        self.assertEqual(image.read(1234, len(content)), content)
        view = memoryview(bytearray(len(content)))
        if image.try_read_into(view, 1234):
            self.assertEqual(view, content)
        self.assertEqual(self.path.read_bytes()[1234 : 1234 + len(content)], content)
        self.assertEqual(self.path.stat().st_size, SIZE)

    def test_what_is_in_memory_is_read_at_once(self) -> None:
        image = self.image(random_image(self.path, SIZE))
        image.make_resident(0, SIZE)
        view = memoryview(bytearray(SIZE))
        if not image.try_read_into(view, 0):
            raise SkipTest("the filesystem of the test folder doesn't know RWF_NOWAIT")
        self.assertEqual(view, self.path.read_bytes())

    def test_reading_at_once_gives_up_on_all_that_is_not_the_whole_answer(self) -> None:
        image = self.image(random_image(self.path, SIZE))
        view = memoryview(bytearray(512))

        def short(*args: object) -> int:
            return 511

        self.patch(file, "preadv", short)
        self.assertFalse(image.try_read_into(view, 0))
        for number in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EIO):
            self.patch(file, "preadv", failing(number))
            self.assertFalse(image.try_read_into(view, 0))

    def test_a_truncated_image_is_an_input_output_error_and_no_signal(self) -> None:
        image = self.image(random_image(self.path, SIZE))
        os.truncate(self.path, SIZE - 100)
        offset, length = SIZE - 2 * BLOCK, 2 * BLOCK
        self.assertFalse(image.try_read_into(memoryview(bytearray(length)), offset))
        self.assert_fails(errno.EIO, image.read_into, memoryview(bytearray(length)), offset)
        self.assert_fails(errno.EIO, image.read, offset, length)
        self.assert_fails(errno.EIO, image.make_resident, offset, length)
        self.assert_fails(errno.EIO, list, image.extents(offset, length))
        os.truncate(self.path, 0)
        self.assert_fails(errno.EIO, image.read, 0, 1)
        if not image.in_memory:
            self.assertFalse(image.is_resident(0, BLOCK))

    def test_extents_are_those_of_the_image(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        image.write(b"data", 4 * BLOCK)
        image.write(b"data", 5 * BLOCK)
        found = [(each.offset, each.length) for each in image.extents(0, SIZE) if each.data]
        self.assertEqual(found, [(4 * BLOCK, 2 * BLOCK)])


class ReadingAndWritingInMemory(ReadingAndWriting):
    parent = "/dev/shm"

    def test_nothing_in_memory_ever_waits(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        self.assertTrue(image.in_memory)
        self.assertTrue(image.is_resident(0, SIZE))
        self.assertFalse(image.may_block_write(1, 2))
        self.assertTrue(image.try_read_into(memoryview(bytearray(SIZE)), 0))


class Residency(WithAFolder):
    """On a disk, with the page cache emptied of the image."""

    def cold(self, *, read_only: bool = False) -> Image:
        image = self.image(random_image(self.path, 4 * SCRATCH), read_only=read_only)
        os.fsync(image.fd)
        os.posix_fadvise(image.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if image.in_memory or image.is_resident(0, image.size):
            raise SkipTest("the filesystem of the test folder keeps its pages in memory")
        return image

    def test_what_a_thread_has_brought_in_is_resident(self) -> None:
        image = self.cold()
        image.make_resident(0, image.size)
        self.assertTrue(image.is_resident(0, image.size))
        self.assertTrue(image.is_resident(1, 1))
        self.assertTrue(image.is_resident(image.size - 1, 1))

    def test_one_absent_page_is_found_wherever_it_is(self) -> None:
        image = self.cold()
        os.posix_fadvise(image.fd, 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        absent = {0, 7, 15}
        for page in set(range(16)) - absent:
            image.read(page * BLOCK, 1)
        for page in range(16):
            self.assertEqual(image.is_resident(page * BLOCK + 100, 50), page not in absent)
        self.assertFalse(image.is_resident(7 * BLOCK - 1, 2))
        self.assertFalse(image.is_resident(8 * BLOCK - 1, 2))
        self.assertTrue(image.is_resident(BLOCK, 6 * BLOCK))

    def test_beyond_the_end_nothing_is_resident(self) -> None:
        image = self.cold()
        image.make_resident(0, image.size)
        self.assertFalse(image.is_resident(image.size - 1, 2))

    def test_where_the_kernel_fails_to_tell_nothing_is_resident(self) -> None:
        image = self.cold()
        image.make_resident(0, image.size)
        self.patch(linux, "pages_in_core", failing(errno.EAGAIN))
        self.assertFalse(image.is_resident(0, 1))

    def test_a_write_of_the_last_bytes_looks_at_no_byte_behind_them(self) -> None:
        image = self.image(random_image(self.path, BLOCK + 512))
        image.make_resident(0, image.size)
        if image.try_read_into(memoryview(bytearray(1)), 0):
            self.assertFalse(image.may_block_write(BLOCK, 512))

    def test_a_closed_image_has_nothing_resident(self) -> None:
        image = self.cold()
        image.make_resident(0, image.size)
        image.close()
        self.assertFalse(image.is_resident(0, 1))

    def test_what_the_kernel_would_not_tell_truly_is_not_believed(self) -> None:
        self.patch(os, "geteuid", lambda: -1)
        self.patch(os, "access", lambda *_, **__: False)
        image = self.cold(read_only=True)
        image.make_resident(0, image.size)
        self.assertFalse(image.is_resident(0, 1))

    def test_reading_at_once_leaves_the_reactor_alone(self) -> None:
        image = self.cold()
        view = memoryview(bytearray(image.size))
        if image.try_read_into(view, 0):  # by a disk that was very fast
            self.assertEqual(view, self.path.read_bytes())
        image.make_resident(0, image.size)
        image.read_into(view, 0)
        self.assertEqual(view, self.path.read_bytes())

    def test_only_a_write_with_a_cold_edge_may_have_to_wait(self) -> None:
        for offset, length, may_block in (
            (0, BLOCK, False),
            (BLOCK, 5 * BLOCK, False),
            (512, 512, True),
            (0, 512, True),
            (512, BLOCK - 512, True),
            (BLOCK - 1, BLOCK + 1, True),
            (0, BLOCK + 1, True),
        ):
            image = self.cold()
            blocks = image.may_block_write(offset, length)
            if may_block and not blocks:  # by a disk that was very fast: all of them are there now
                edges = [(offset, offset), (offset + length, offset + length - 1)]
                for edge, byte in edges:
                    if edge % BLOCK:
                        view = memoryview(bytearray(1))
                        self.assertTrue(image.try_read_into(view, byte), (offset, length))
            else:
                self.assertEqual(blocks, may_block, (offset, length))
            image.make_resident(0, 4 * BLOCK)
            if image.try_read_into(memoryview(bytearray(1)), 0):
                self.assertFalse(image.may_block_write(offset, length), (offset, length))
            image.close()


class WritesThatFail(WithAFolder):
    def limited(self, length: int) -> None:
        """Let no file of this process grow or be written beyond *length* bytes, for this test."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))

    def test_a_short_write_is_tried_again_until_the_kernel_says_why(self) -> None:
        image = self.image(random_image(self.path, SIZE))
        self.limited(2 * BLOCK)
        self.assert_fails(errno.EFBIG, image.write, b"x" * 2 * BLOCK, BLOCK)
        self.assertEqual(image.read(BLOCK, BLOCK), b"x" * BLOCK)

    def test_short_writes_that_can_go_on_write_everything(self) -> None:
        image = self.image(random_image(self.path, SIZE))
        whole = os.pwrite
        for module in (file, exact):
            self.patch(module, "pwrite", lambda fd, view, offset: whole(fd, view[:1000], offset))
        content = os.urandom(3 * BLOCK)
        image.write(content, 700)
        self.assertEqual(image.read(700, len(content)), content)

    def test_short_reads_that_can_go_on_read_everything(self) -> None:
        image = self.image(random_image(self.path, SIZE))
        preadv, pread = os.preadv, os.pread
        self.patch(
            exact,
            "preadv",
            lambda fd, views, offset: preadv(fd, [views[0][:1000]], offset),
        )
        self.patch(os, "pread", lambda fd, length, offset: pread(fd, 1000, offset))
        content = self.path.read_bytes()[700 : 700 + 3 * BLOCK]
        view = memoryview(bytearray(3 * BLOCK))
        image.read_into(view, 700)
        self.assertEqual(view, content)
        self.assertEqual(image.read(700, 3 * BLOCK), content)

    def test_a_full_disk_is_told_as_it_is_and_room_that_is_made_is_used(self) -> None:
        mounted = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(self.folder)]
        if subprocess.run(mounted, capture_output=True, check=False).returncode:
            raise SkipTest("a small filesystem can't be mounted (needs root)")
        self.addCleanup(subprocess.run, ["umount", str(self.folder)], check=True)
        image = self.image(blank_image(self.path, 1 << 20))
        self.assert_fails(errno.ENOSPC, image.write, b"x" * (128 * 1024), 0)
        image.trim(0, 1 << 20)
        image.write(b"x" * BLOCK, 512 * 1024)
        self.assertEqual(image.read(512 * 1024, BLOCK), b"x" * BLOCK)
        image.close()


class ReadingAhead(WithAFolder):
    def test_brings_into_memory_what_was_named(self) -> None:
        image = self.image(random_image(self.path, SIZE, seed=1))
        os.fsync(image.fd)
        os.posix_fadvise(image.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        image.will_need([(0, 2 * BLOCK), (32 * BLOCK, BLOCK)])
        deadline = time.monotonic() + PATIENCE
        while not (image.is_resident(0, 2 * BLOCK) and image.is_resident(32 * BLOCK, BLOCK)):
            self.assertLess(time.monotonic(), deadline)

    def test_is_advice_that_never_fails(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        image.close()
        image.will_need([(0, BLOCK)])


class Dropping(WithAFolder):
    def test_gives_back_what_was_named_and_no_more(self) -> None:
        # The kernel keeps pages in folios of up to 2 MiB, and drops whole ones.
        size = 16 << 20
        image = self.image(random_image(self.path, size, seed=1))
        if image.in_memory:
            raise SkipTest("no disk is behind it")
        image.flush()
        # Again, if need be: pages may be dropped by others, too.
        deadline = time.monotonic() + PATIENCE
        dropped = kept = False
        while not (dropped and kept):
            self.assertLess(time.monotonic(), deadline)
            image.make_resident(0, size)
            before = image.is_resident(0, BLOCK)
            image.drop_cached([(0, size // 2)])
            dropped = before and not image.is_resident(0, BLOCK)
            kept = image.is_resident(size - BLOCK, BLOCK)

    def test_is_advice_that_never_fails(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        image.close()
        image.drop_cached([(0, BLOCK)])


class WritingBack(WithAFolder):
    def descriptors(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def test_has_a_file_of_its_own_so_that_a_flush_is_told_of_errors_too(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        asked: list[tuple[int, ...]] = []
        self.patch(linux, "sync_file_range", lambda *args: asked.append(args))
        before = self.descriptors()
        image.write_back()
        image.write_back()
        self.assertEqual(self.descriptors(), before)  # it was needed when the image was opened
        (first, *what), second = asked
        self.assertEqual((first, *what), second)
        self.assertNotEqual(first, image.fd)
        self.assertTrue(os.path.sameopenfile(first, image.fd))
        image.close()
        self.assertEqual(self.descriptors(), before - 2)

    def test_keeps_what_was_written_and_the_lock(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        image.write(b"x" * SIZE, 0)
        image.write_back()
        image.write_back()  # waits for what the first has begun
        self.assertEqual(image.read(0, SIZE), b"x" * SIZE)
        self.assertIn("in use", self.refused(self.path))

    def test_there_is_nothing_to_do_in_memory(self) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            image = self.image(blank_image(Path(folder) / "image", SIZE))
            before = self.descriptors()
            image.write_back()
            self.assertEqual(self.descriptors(), before)


class Unlinking(WithAFolder):
    def test_the_name_goes_and_the_bytes_stay_until_closed(self) -> None:
        content = random_image(self.path, SIZE).read_bytes()
        image = self.image()
        image.unlink()
        self.assertFalse(self.path.exists())
        self.assertEqual(image.read(0, SIZE), content)

    def test_it_is_known_whether_the_name_is_still_its_own(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        aside = self.folder / "aside"
        self.assertIsNone(image.name_fault())
        self.path.rename(aside)
        self.assert_elsewhere(image, "is not there any more: it was renamed")
        random_image(self.path, SIZE)
        self.assert_elsewhere(image, "leads to another file by now: the image was renamed")
        aside.unlink()
        self.assert_elsewhere(image, "leads to another file by now: the image was removed")
        self.path.unlink()
        self.assert_elsewhere(image, "is not there any more: it was removed")

    def test_a_folder_that_was_renamed_or_is_another_takes_the_name_along(self) -> None:
        folder = self.folder / "pool"
        folder.mkdir()
        image = self.image(blank_image(folder / "disk.img", SIZE))
        folder.rename(self.folder / "pool.old")
        self.assert_elsewhere(image, "disk.img is not there any more: it was renamed")
        folder.write_bytes(b"no folder at all")
        self.assert_elsewhere(image, "disk.img is not there any more: it was renamed")
        folder.unlink()
        (self.folder / "pool.old").rename(folder)
        self.assertIsNone(image.name_fault())

    def test_a_link_by_which_it_was_opened_may_lead_elsewhere_later(self) -> None:
        other, link = random_image(self.folder / "other", SIZE), self.folder / "link"
        blank_image(self.path, SIZE)
        link.symlink_to(self.path)
        image = self.image(link)
        self.assertIsNone(image.given_name_fault())
        link.unlink()
        link.symlink_to(other)
        self.assertIsNone(image.name_fault())
        self.assertIn("link leads to another file by now", image.given_name_fault() or "")

    def test_a_name_that_can_not_be_looked_up_leads_to_nothing(self) -> None:
        class Stale:
            def __getattr__(self, name: str) -> Any:
                return getattr(SYSTEM, name)

            def stat(self, path: str) -> os.stat_result:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)

        image = self.image(blank_image(self.path, SIZE))
        stale: Any = Stale()
        image.disk = stale
        self.assert_elsewhere(image, "can't be found any more: Stale file handle")

    def assert_elsewhere(self, image: Image, why: str) -> None:
        for fault in (image.name_fault(), image.given_name_fault()):
            self.assertIn(why, fault or "nothing")

    def test_a_size_that_somebody_else_has_changed_is_known(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        self.assertIsNone(image.size_fault())
        for size in (0, SIZE - 1, SIZE + 1):
            os.truncate(self.path, size)
            self.assertIn(f"{size} bytes, not {SIZE}", image.size_fault() or "")
        os.truncate(self.path, SIZE)
        self.assertIsNone(image.size_fault())

    def test_a_file_that_took_the_name_is_left_alone(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        os.replace(random_image(self.folder / "other", SIZE), self.path)
        self.assertIn("not the image", str(self.assertRaises(ImageError, image.unlink)))
        self.assertTrue(self.path.exists())

    def test_an_image_that_was_moved_is_not_said_to_be_gone(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        os.rename(self.path, self.folder / "elsewhere")
        self.assertIn("was moved", str(self.assertRaises(ImageError, image.unlink)))
        self.assertTrue((self.folder / "elsewhere").exists())

    def test_that_it_is_gone_already_is_no_error(self) -> None:
        image = self.image(blank_image(self.path, SIZE))
        self.path.unlink()
        image.unlink()

    def test_through_a_link_it_is_the_image_that_goes(self) -> None:
        blank_image(self.path, SIZE)
        link = self.folder / "link"
        link.symlink_to(self.path)
        self.image(link).unlink()
        self.assertFalse(self.path.exists())

    def test_a_relative_path_means_what_it_meant_when_it_was_opened(self) -> None:
        blank_image(self.path, SIZE)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        image = self.image(Path("image"))
        os.chdir("/")
        image.unlink()
        self.assertFalse(self.path.exists())


def failing(number: int) -> Callable[..., int]:
    def fail(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail
