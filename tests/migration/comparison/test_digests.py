"""Digests of ranges and of images: of known bytes, of holes, and of images that change."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from blake3 import blake3
from twisted.trial.unittest import SynchronousTestCase

from flexmigrate.image.file import Image
from flexmigrate.migration.comparison import digests
from flexmigrate.migration.comparison.digests import (
    ImageDigest,
    chunk_size,
    digest_of,
    digest_of_zeroes,
    digests_of,
    image_digest,
    reads_as_zeroes,
)

MIB = 1024 * 1024
BLOCK = 4096
SIZE = 4 * MIB + BLOCK
PIECES = ((BLOCK, BLOCK), (MIB + 512, MIB), (3 * MIB, 512))


class ImageCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        self.path = folder / "image"
        with self.path.open("wb") as file:
            file.truncate(SIZE)
            for offset, length in PIECES:
                file.seek(offset)
                file.write(random.Random(offset).randbytes(length))
        self.image = Image.open(str(self.path))
        self.addCleanup(self.image.close)
        self.bytes = self.path.read_bytes()


class RangeTests(ImageCase):
    def test_is_the_digest_of_the_bytes(self) -> None:
        ranges = [(0, SIZE), (0, MIB), (MIB, MIB), (2 * MIB, 512), (SIZE - 512, 512), *PIECES]
        for (offset, length), found in zip(ranges, digests_of(self.image, ranges), strict=True):
            expected = blake3(self.bytes[offset : offset + length]).digest()
            self.assertEqual(found, expected, (offset, length))
            self.assertEqual(digest_of(self.image, offset, length), expected)

    def test_of_a_hole_nothing_is_read(self) -> None:
        self.patch(Image, "read_into", lambda *_: self.fail("it was read"))
        self.assertEqual(digest_of(self.image, 3 * MIB + BLOCK, BLOCK), digest_of_zeroes(BLOCK))
        self.assertTrue(reads_as_zeroes(self.image, 3 * MIB + BLOCK, MIB))

    def test_of_what_is_partly_a_hole_only_the_rest_is_read(self) -> None:
        into, read = Image.read_into, []

        def counted(image: Image, view: memoryview, offset: int) -> None:
            read.append(len(view))
            into(image, view, offset)

        self.patch(Image, "read_into", counted)
        for offset, length in ((0, SIZE), (100, 3 * BLOCK), (2 * MIB, 2 * MIB), (SIZE - 1, 1)):
            expected = blake3(self.bytes[offset : offset + length]).digest()
            self.assertEqual(digest_of(self.image, offset, length), expected, (offset, length))
        # Each of the pieces is followed by what is read with its end.
        self.assertLess(sum(read), SIZE)

    def test_of_zeroes(self) -> None:
        for length in (1, 512, MIB, MIB + 1, 3 * MIB + 5):
            self.assertEqual(digest_of_zeroes(length), blake3(bytes(length)).digest())

    def test_zeroes_are_found_whether_they_are_stored_or_not(self) -> None:
        self.image.write(b"\1" * MIB, 2 * MIB)
        with self.path.open("r+b") as file:
            file.seek(2 * MIB)
            file.write(bytes(MIB))
        self.assertTrue(reads_as_zeroes(self.image, 2 * MIB, MIB))
        self.image.write(b"\1", 3 * MIB - 1)
        self.assertFalse(reads_as_zeroes(self.image, 2 * MIB, MIB))
        self.assertTrue(reads_as_zeroes(self.image, 2 * MIB, MIB - 1))

    def test_what_was_cut_off_is_an_error(self) -> None:
        with self.path.open("r+b") as file:
            file.truncate(2 * MIB)
        for length in (BLOCK, MIB):
            with self.assertRaises(OSError):
                digest_of(self.image, 3 * MIB, length)
            with self.assertRaises(OSError):
                reads_as_zeroes(self.image, 3 * MIB, length)


class ImageDigestTests(ImageCase):
    def whole(self) -> ImageDigest:
        made = ImageDigest(SIZE)
        for offset in range(0, SIZE, MIB):
            length = min(MIB, SIZE - offset)
            made.add(offset, length, blake3(self.bytes[offset : offset + length]).digest())
        return made

    def test_is_made_of_chunks_in_whatever_order_they_are_told(self) -> None:
        values = [
            blake3(self.bytes[offset : offset + MIB]).digest() for offset in range(0, SIZE, MIB)
        ]
        expected = blake3(SIZE.to_bytes(8, "big") + b"".join(values)).hexdigest()
        backwards = ImageDigest(SIZE)
        for index in reversed(range(len(values))):
            self.assertIsNone(backwards.text)
            backwards.add(index * MIB, min(MIB, SIZE - index * MIB), values[index])
        for made in (backwards.text, self.whole().text, image_digest(self.image)):
            self.assertEqual(made, f"blake3:{expected}")
        self.assertEqual(backwards.compared, SIZE)

    def test_a_long_hole_is_as_its_chunks(self) -> None:
        one, many = ImageDigest(SIZE), ImageDigest(SIZE)
        one.add(0, SIZE, None)
        for offset in range(0, SIZE, MIB):
            many.add(offset, min(MIB, SIZE - offset), digest_of_zeroes(min(MIB, SIZE - offset)))
        self.assertEqual(one.text, many.text)

    def test_a_hole_that_begins_and_ends_within_chunks(self) -> None:
        made, parts = self.whole(), self.whole()
        made.add(MIB - BLOCK, MIB + 2 * BLOCK, None)
        parts.add(MIB - BLOCK, BLOCK, digest_of_zeroes(BLOCK))
        parts.add(MIB, MIB, digest_of_zeroes(MIB))
        parts.add(2 * MIB, BLOCK, digest_of_zeroes(BLOCK))
        self.assertEqual(made.text, parts.text)
        within, part = self.whole(), self.whole()
        within.add(BLOCK, BLOCK, None)
        part.add(BLOCK, BLOCK, digest_of_zeroes(BLOCK))
        self.assertEqual(within.text, part.text)

    def test_each_part_that_changes_is_in_it(self) -> None:
        changed = digest_of_zeroes(BLOCK)
        seen = {self.whole().text}
        for offset in range(0, 4 * BLOCK, BLOCK):
            made = self.whole()
            made.add(offset, BLOCK, changed)
            assert made.text is not None
            self.assertTrue(made.text.startswith("blake3-chained:"))
            seen.add(made.text)
        self.assertEqual(len(seen), 5)
        made = self.whole()
        made.add(0, BLOCK, changed)
        made.add(0, MIB, blake3(self.bytes[:MIB]).digest())
        self.assertEqual(made.text, self.whole().text)

    def test_chunks_of_large_images_are_longer_and_as_many_at_most(self) -> None:
        limit = digests.MIN_CHUNK * digests.MAX_CHUNKS
        self.assertEqual(chunk_size(limit), MIB)
        self.assertEqual(chunk_size(limit + 1), 2 * MIB)
        self.assertEqual(chunk_size(1 << 40), 4 * MIB)
