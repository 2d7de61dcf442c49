"""What the simulated disk promises, and what it doesn't."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.errors import ImageError
from flexmigrate.image import disk as disks
from flexmigrate.image.file import Image
from flexmigrate.image.filesystems import Filesystem
from flexmigrate.image.probe import Probed
from flexmigrate.testing.disk import FATES, Died, Mount, SimulatedDisk
from flexmigrate.testing.image import SimulatedCache

PATH = "/disk/record"


class SimulatedDiskCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.disk = SimulatedDisk()
        self.mount = self.disk.mount()
        self.draw = random.Random(1)

    def outcomes(self, act: Callable[[], object], path: str = PATH) -> set[bytes | None]:
        """Return what may be at *path* after *act* and a failure of the machine."""
        found = set()
        for seed in range(300):
            self.setUp()
            act()
            self.mount.die()
            self.disk.fail("anything", random.Random(seed))
            found.add(self.disk.find(path))
        return found

    def write(self, path: str, data: bytes, *, sync: bool) -> None:
        fd = self.mount.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.mount.write(fd, data)
        if sync:
            self.mount.fsync(fd)
        self.mount.close(fd)


class NamesTests(SimulatedDiskCase):
    def test_a_file_whose_folder_was_not_synced_may_be_gone(self) -> None:
        self.assertEqual(
            self.outcomes(lambda: self.write(PATH, b"text", sync=True)), {None, b"text"}
        )

    def test_with_its_folder_synced_it_is_there(self) -> None:
        def act() -> None:
            self.write(PATH, b"text", sync=True)
            disks.sync_folder(self.mount, PATH)

        self.assertEqual(self.outcomes(act), {b"text"})

    def test_another_folder_makes_no_difference(self) -> None:
        def act() -> None:
            self.write(PATH, b"text", sync=True)
            disks.sync_folder(self.mount, "/other/record")

        self.assertEqual(self.outcomes(act), {None, b"text"})

    def test_what_was_removed_may_come_back(self) -> None:
        def act() -> None:
            self.disk.put(PATH, b"text")
            self.mount.unlink(PATH)

        self.assertEqual(self.outcomes(act), {None, b"text"})

    def test_a_name_that_changes_leads_to_one_of_both_files(self) -> None:
        def act() -> None:
            self.disk.put(PATH, b"old")
            self.disk.put(PATH + ".new", b"new")
            self.mount.replace(PATH + ".new", PATH)

        self.assertEqual(self.outcomes(act), {b"old", b"new"})

    def test_what_is_kept_as_the_product_does_it_is_old_or_new(self) -> None:
        for done in range(9):

            def act(done: int = done) -> None:
                self.disk.put(PATH, b"old")
                self.mount = self.disk.mount()
                calls = iter(range(done))

                def before(*_: object) -> None:
                    if next(calls, None) is None:
                        self.mount.die()

                self.disk.before = before
                try:
                    disks.replace(self.mount, PATH, b"something new")
                except Died:
                    self.disk.before = lambda *_: None

            self.assertLessEqual(self.outcomes(act), {b"old", b"something new"})

        def whole() -> None:
            self.disk.put(PATH, b"old")
            disks.replace(self.mount, PATH, b"something new")

        self.assertEqual(self.outcomes(whole), {b"something new"})


class BytesTests(SimulatedDiskCase):
    def test_what_was_not_synced_may_be_there_in_part(self) -> None:
        def act() -> None:
            self.disk.put(PATH, b"....")
            fd = self.mount.open(PATH, os.O_WRONLY)
            self.mount.write(fd, b"text")

        self.assertEqual(self.outcomes(act), {b"....", b"t...", b"te..", b"tex.", b"text"})

    def test_each_sector_of_an_image_is_as_before_or_after(self) -> None:
        def act() -> None:
            self.disk.put(PATH, b"." * 1024)
            image = self.mount.open_image(PATH)
            image.write(b"x" * 1024, 0)

        olds, news = b"." * 512, b"x" * 512
        self.assertEqual(
            self.outcomes(act), {one + two for one in (olds, news) for two in (olds, news)}
        )

    def test_what_was_flushed_stays(self) -> None:
        def act() -> None:
            self.disk.put(PATH, b"." * 512)
            image = self.mount.open_image(PATH)
            image.write(b"x" * 512, 0)
            image.flush()

        self.assertEqual(self.outcomes(act), {b"x" * 512})

    def test_an_image_remembers_through_the_death_of_its_process(self) -> None:
        self.disk.put(PATH, b"." * 512)
        self.mount.open_image(PATH).write(b"x" * 512, 0)
        self.mount.die()
        self.assertEqual(self.disk.find(PATH), b"x" * 512)

    def test_a_copy_has_all_of_it_and_goes_its_own_way(self) -> None:
        self.disk.put(PATH, b"." * 512)
        self.mount.open_image(PATH).write(b"x" * 512, 0)
        self.write("/disk/other", b"text", sync=True)
        copy = self.disk.copy()
        self.assertEqual(copy.find(PATH), b"x" * 512)
        self.assertEqual(copy.names(), {PATH, "/disk/other"})
        self.assertEqual(copy.names(after_failure=True), {PATH})
        self.assertIsNone(copy.named(PATH).user)
        copy.fail("nothing", self.draw)
        self.assertEqual((copy.find(PATH), copy.find("/disk/other")), (b"." * 512, None))
        self.assertEqual(
            (self.disk.find(PATH), self.disk.find("/disk/other")), (b"x" * 512, b"text")
        )

    def test_it_is_synced_when_nothing_could_be_lost(self) -> None:
        self.disk.put(PATH, b"." * 512)
        image = self.mount.open_image(PATH)
        self.assertTrue(self.disk.is_synced)
        image.write(b"x" * 512, 0)
        self.assertFalse(self.disk.is_synced)
        image.flush()
        self.assertTrue(self.disk.is_synced)
        self.mount.unlink(PATH)
        self.assertFalse(self.disk.is_synced)
        disks.sync_folder(self.mount, PATH)
        self.assertTrue(self.disk.is_synced)

    def test_a_fate_may_be_chosen(self) -> None:
        found = {}
        for fate in FATES:
            self.setUp()
            self.disk.put(PATH, b"." * 512)
            self.mount.open_image(PATH).write(b"x" * 512, 0)
            self.mount.die()
            self.disk.fail(fate, self.draw)
            found[fate] = (self.disk.find(PATH) or b"")[:1]
        self.assertEqual((found["nothing"], found["everything"]), (b".", b"x"))


class ForgettingTests(SimulatedDiskCase):
    """A disk that can't be written for a while, below a page cache that forgets that."""

    def setUp(self) -> None:
        super().setUp()
        self.disk.put(PATH, b"." * 1024)
        self.disk.forgets = True
        self.image = self.mount.open_image(PATH)
        self.cache = self.cache_of(self.mount)
        self.failing = ""
        self.disk.before = self.before

    def cache_of(self, mount: Mount) -> SimulatedCache:
        """Return the page cache as who opens the image now has it; `Image.flush` knows better."""
        return SimulatedCache(mount, PATH, self.disk.named(PATH))

    def before(self, mount: object, call: str, path: str) -> None:
        if call == self.failing:
            raise OSError(errno.ENOSPC, "No space left on device", path)

    def refuse(self, call: str, act: Callable[[], object]) -> None:
        self.failing = call
        self.assertEqual(self.assertRaises(OSError, act).errno, errno.ENOSPC)
        self.failing = ""

    def lose_half(self) -> None:
        """Write a sector that is lost, and another that isn't."""
        self.image.write(b"x" * 512, 0)
        self.refuse("fdatasync", self.cache.sync)
        self.image.write(b"x" * 512, 512)
        self.cache.sync()

    def left(self) -> bytes | None:
        """Return what is on the disk when the machine has failed."""
        self.disk.fail("everything", self.draw)
        return self.disk.find(PATH)

    def test_a_flush_that_failed_is_followed_by_one_that_lies(self) -> None:
        self.lose_half()
        self.assertEqual(self.image.read(0, 1024), b"x" * 1024)
        self.assertFalse(self.disk.is_synced)
        self.assertEqual(self.disk.copy().find_after_failure(PATH), b"." * 512 + b"x" * 512)
        self.mount.die()
        self.assertEqual(self.left(), b"." * 512 + b"x" * 512)

    def test_another_process_reads_what_was_lost_as_well(self) -> None:
        self.lose_half()
        self.mount.die()
        mount = self.disk.mount()
        self.cache_of(mount).sync()
        image = mount.open_image(PATH)
        self.assertEqual(image.read(0, 512), b"x" * 512)

    def test_what_the_page_cache_lets_go_of_is_as_the_disk_has_it(self) -> None:
        self.lose_half()
        self.image.write(b"y" * 512, 512)
        self.image.drop_cached([(256, 768)])
        self.assertEqual(self.image.read(0, 1024), b"x" * 256 + b"." * 256 + b"y" * 512)
        self.disk.evict(PATH)
        self.assertEqual(self.image.read(0, 1024), b"." * 512 + b"y" * 512)
        self.cache.sync()
        self.assertTrue(self.disk.is_synced)

    def test_what_is_written_again_is_durable(self) -> None:
        self.lose_half()
        self.image.write(b"x" * 512, 0)
        self.cache.sync()
        self.assertTrue(self.disk.is_synced)
        self.assertEqual(self.left(), b"x" * 1024)

    def test_writing_back_loses_as_much_and_each_descriptor_is_told(self) -> None:
        self.image.write(b"x" * 512, 0)
        self.refuse("write back", self.cache.write_back)
        self.cache.write_back()
        error = self.assertRaises(OSError, self.cache.sync)
        self.assertEqual(error.errno, errno.ENOSPC)
        self.cache.sync()
        self.assertEqual(self.left(), b"." * 1024)

    def test_what_the_kernel_loses_by_itself_is_told_once(self) -> None:
        self.image.write(b"x" * 512, 0)
        self.disk.lose(PATH, errno.EIO)
        self.assertEqual(self.image.read(0, 512), b"x" * 512)
        self.assertEqual(self.assertRaises(OSError, self.cache.sync).errno, errno.EIO)
        self.cache.sync()
        self.mount.die()
        self.cache_of(self.disk.mount()).sync()
        self.assertEqual(self.left(), b"." * 1024)

    def test_who_opens_it_next_is_told_if_nobody_was(self) -> None:
        self.image.write(b"x" * 512, 0)
        self.mount.die()
        self.disk.lose(PATH, errno.EIO)
        cache = self.cache_of(self.disk.mount())
        self.assertEqual(self.assertRaises(OSError, cache.sync).errno, errno.EIO)
        cache.sync()

    def test_a_disk_that_does_not_forget_can_be_asked_again(self) -> None:
        self.disk.forgets = False
        self.image.write(b"x" * 512, 0)
        self.refuse("fdatasync", self.cache.sync)
        self.cache.sync()
        self.assertTrue(self.disk.is_synced)

    def test_a_record_is_forgotten_as_well(self) -> None:
        fd = self.mount.open("/disk/other", os.O_WRONLY | os.O_CREAT)
        disks.sync_folder(self.mount, "/disk/other")
        self.mount.write(fd, b"text")
        self.refuse("fsync", lambda: self.mount.fsync(fd))
        self.mount.fsync(fd)
        self.assertEqual(self.disk.find("/disk/other"), b"text")
        self.disk.fail("everything", self.draw)
        self.assertEqual(self.disk.find("/disk/other"), b"")


class ProcessTests(SimulatedDiskCase):
    def setUp(self) -> None:
        super().setUp()
        self.disk.put(PATH, bytes(8192) + b"x" * 4096)

    def test_an_image_belongs_to_one_at_a_time(self) -> None:
        image = self.mount.open_image(PATH)
        other = self.disk.mount()
        error = self.assertRaises(ImageError, other.open_image, PATH)
        self.assertIn("in use", str(error))
        image.close()
        other.open_image(PATH)

    def test_death_unlocks_and_ends_everything(self) -> None:
        image = self.mount.open_image(PATH)
        self.mount.die()
        self.disk.mount().open_image(PATH)
        calls: tuple[Callable[[], Any], ...] = (
            lambda: image.write(b"y", 0),
            image.flush,
            lambda: self.mount.unlink(PATH),
            lambda: self.mount.open(PATH, os.O_RDONLY),
        )
        for call in calls:
            self.assertRaises(Died, call)
        self.assertEqual(self.disk.find(PATH), bytes(8192) + b"x" * 4096)

    def test_extents_tell_holes_from_data(self) -> None:
        image = self.mount.open_image(PATH)
        found = [(each.offset, each.length, each.data) for each in image.extents(512, 11776)]
        self.assertEqual(found, [(512, 7680, False), (8192, 4096, True)])

    def test_an_image_is_unlinked_durably_and_keeps_its_bytes(self) -> None:
        image = self.mount.open_image(PATH)
        image.unlink()
        self.assertIn("it was removed", image.name_fault() or "")
        self.assertEqual(image.read(8192, 2), b"xx")
        image.unlink()  # once more is no error
        self.mount.die()
        self.disk.fail("anything", self.draw)
        self.assertIsNone(self.disk.find(PATH))

    def test_somebody_else_moves_replaces_and_removes_it(self) -> None:
        image = self.mount.open_image(PATH)
        self.disk.move(PATH, "/disk/aside")
        self.assertIn("is not there any more: it was renamed", image.name_fault() or "")
        self.disk.put(PATH, b"another")
        self.assertIn("another file by now: the image was renamed", image.name_fault() or "")
        self.disk.move("/disk/aside", PATH)
        self.assertIsNone(image.name_fault())
        self.disk.remove(PATH)
        self.assertIn("it was removed", image.name_fault() or "")
        self.disk.fail("everything", self.draw)
        self.assertIsNone(self.disk.find(PATH))

    def test_an_attribute_is_kept_once_it_is_synced(self) -> None:
        for synced in (False, True):
            mount = self.disk.mount()
            fd = mount.open(PATH, os.O_RDONLY)
            mount.setxattr(fd, "user.name", b"value")
            if synced:
                mount.fsync(fd)
            self.assertEqual(mount.getxattr(PATH, "user.name"), b"value")
            self.disk.fail("nothing", self.draw)
            found = self.disk.attribute(PATH, "user.name")
            self.assertEqual(found, b"value" if synced else None)
            self.assertEqual(self.disk.attribute(PATH, "user.name", after_failure=True), found)
        self.mount.removexattr(self.mount.open(PATH, os.O_RDONLY), "user.name")
        self.assertRaises(OSError, self.mount.getxattr, PATH, "user.name")

    def test_what_is_not_there_can_not_be_opened(self) -> None:
        self.assertRaises(ImageError, self.mount.open_image, "/disk/none")


class HidingTests(SimulatedDiskCase):
    """A filesystem that calls what wasn't synced a hole."""

    def setUp(self) -> None:
        super().setUp()
        self.disk.put(PATH, bytes(16384))
        self.disk.hides_dirty = True

    def extents(self, image: Image) -> list[tuple[int, int, bool]]:
        return [(each.offset, each.length, each.data) for each in image.extents(0, 16384)]

    def test_it_misleads_whoever_believes_it(self) -> None:
        image = self.mount.open_image(PATH)
        image.write(b"x" * 4096, 4096)
        self.assertEqual(self.extents(image), [(0, 16384, False)])
        image.write(bytes(4096), 4096)
        self.assertEqual(image.read(4096, 4096), b"x" * 4096)
        image.flush()
        self.assertIn((4096, 4096, True), self.extents(image))

    def test_nobody_else_is_misled(self) -> None:
        known = self.disk.filesystem
        for filesystem, probed in (
            (Filesystem("fuse", 0x65735546), Probed(knows_dirty=True, zeroes=True)),
            (known, Probed(knows_dirty=False, zeroes=True)),
            (known, "Permission denied"),
        ):
            self.disk.filesystem, self.disk.probed = filesystem, probed
            image = self.disk.mount().open_image(PATH)
            image.write(b"x" * 4096, 4096)
            self.assertEqual(self.extents(image), [(0, 16384, True)])
            image.write(bytes(4096), 4096)
            self.assertEqual(image.read(4096, 4096), bytes(4096))
            image.close()
