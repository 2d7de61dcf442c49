"""The same promises for a block device: a loop device, where the machine has one."""

import errno
import os
import subprocess
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from flexmigrate.errors import ImageError
from flexmigrate.image.extents import Extent
from flexmigrate.image.file import Image
from flexmigrate.image.kernel import calls as linux
from support.images import BLOCK, allocated, random_image

SIZE = 64 * BLOCK


class LoopDevice(SynchronousTestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(dir="/var/tmp")
        self.addCleanup(folder.cleanup)
        self.file = random_image(Path(folder.name, "image"), SIZE)
        self.content = self.file.read_bytes()
        try:
            made = subprocess.run(
                ["losetup", "--find", "--show", str(self.file)], capture_output=True, text=True
            )
        except FileNotFoundError:
            raise SkipTest("losetup isn't installed") from None
        if made.returncode:
            raise SkipTest(f"no loop device can be had: {made.stderr.strip()}")
        self.path = made.stdout.strip()
        self.addCleanup(subprocess.run, ["losetup", "--detach", self.path], check=True)

    def image(self, *, read_only: bool = False) -> Image:
        image = Image.open(self.path, read_only=read_only)
        self.addCleanup(image.close)
        return image

    def change(self, offset: int, new: bytes) -> None:
        """Note what *content* is expected to be."""
        self.content = self.content[:offset] + new + self.content[offset + len(new) :]

    def assert_content(self, image: Image) -> None:
        self.assertEqual(image.read(0, SIZE), self.content)
        image.flush()
        self.assertEqual(self.file.read_bytes(), self.content)

    def test_it_has_its_size_and_is_all_data(self) -> None:
        image = self.image()
        self.assertTrue(image.is_block_device)
        self.assertEqual(image.size, SIZE)
        self.assertEqual(list(image.extents(512, 1024)), [Extent(512, 1024, data=True)])

    def test_what_was_written_is_read(self) -> None:
        image = self.image()
        self.assertTrue(image.may_block_write(700, 1))
        for offset, new in ((0, bytes(BLOCK)), (700, b"unaligned"), (SIZE - 1, b"x")):
            image.write(new, offset)
            self.change(offset, new)
        self.assert_content(image)
        image.make_resident(0, SIZE)
        self.assertTrue(image.is_resident(0, SIZE))
        view = memoryview(bytearray(SIZE))
        self.assertTrue(image.try_read_into(view, 0))
        self.assertEqual(view, self.content)

    def test_zeroes_are_right_to_the_byte_in_every_way(self) -> None:
        image = self.image()
        for may_punch in (True, False):
            for offset, length in (
                (8 * BLOCK, BLOCK),
                (9 * BLOCK + 512, 512),
                (BLOCK - 3, 6),
                (20 * BLOCK + 1, 5 * BLOCK),
                (30 * BLOCK - 1, 514),
            ):
                image.zero(offset, length, may_punch=may_punch)
                self.change(offset, bytes(length))
                self.assert_content(image)
                image.write(b"\xff" * length, offset)
                self.change(offset, b"\xff" * length)

    def test_punching_gives_the_room_back(self) -> None:
        image = self.image()
        image.zero(0, SIZE, may_punch=True, fast_only=True)
        image.flush()
        self.assertEqual(allocated(self.file), 0)

    def test_zeroes_that_the_kernel_would_write_are_not_fast(self) -> None:
        image = self.image()
        error = self.assertRaises(OSError, image.zero, 0, SIZE, may_punch=False, fast_only=True)
        self.assertEqual(error.errno, errno.ENOTSUP)
        self.assert_content(image)

    def test_trim_gives_back_whole_sectors_only(self) -> None:
        image = self.image()
        image.trim(511, BLOCK)
        image.trim(8 * BLOCK + 1, 510)
        self.change(512, bytes(BLOCK - 512))
        self.assert_content(image)

    def test_a_device_that_cannot_promise_zeroes_may_still_forget(self) -> None:
        def fallocate(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "refused by the test")

        self.patch(linux, "fallocate", fallocate)
        image = self.image()
        image.trim(0, SIZE)
        image.flush()
        self.assertEqual(allocated(self.file), 0)
        for number in (errno.EOPNOTSUPP, errno.EIO):
            self.patch(linux, "discard", self.refusing(number))
            if number == errno.EIO:
                self.assertRaises(OSError, image.trim, 0, SIZE)
            else:
                image.trim(0, SIZE)

    @staticmethod
    def refusing(number: int) -> object:
        def discard(*_: int) -> None:
            raise OSError(number, os.strerror(number))

        return discard

    def test_a_device_that_is_mounted_or_claimed_is_not_written_but_can_be_read(self) -> None:
        claim = os.open(self.path, os.O_RDONLY | os.O_EXCL)
        self.addCleanup(os.close, claim)
        error = self.assertRaises(ImageError, Image.open, self.path)
        self.assertIn("busy", str(error))
        self.assertEqual(self.image(read_only=True).read(0, SIZE), self.content)

    def test_its_name_is_never_unlinked(self) -> None:
        image = self.image()
        self.assertRaises(ImageError, image.unlink)
        self.assertTrue(os.path.exists(self.path))
