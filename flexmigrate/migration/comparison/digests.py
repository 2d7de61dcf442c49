"""Digests of an image's content, by which two copies are compared without sending either.

BLAKE3 with 32 bytes and no key: cryptographic, so that copies which have the same are the same, and
several times as fast as a disk or a link. Nothing here knows of a network or of Twisted; functions
that read an image belong into a thread, and release the interpreter's lock while they hash.

An image is compared in ranges. Those that aren't changed later on are *chunks*: ranges of
``chunk_size`` that begin at a multiple of it. `ImageDigest` makes one digest of them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from struct import Struct

from blake3 import blake3

from flexmigrate.image.storage import BlockingReads
from flexmigrate.image.zeroes import ZEROES

LENGTH = 32
"""Bytes of a digest."""

MIN_CHUNK = 1024 * 1024
"""What is read for one digest: by far longer than a request costs, and still little to send again
where two copies differ."""

MAX_CHUNKS = 256 * 1024
"""As many as there may be of an image, at 33 bytes each; of more than 256 GiB, chunks are
longer."""

# What is read and hashed at a time: it stays in a core's second-level cache, and is long enough for
# BLAKE3 to work on many blocks at once. (7.4 GiB/s on one core with 256 KiB, 6.6 with 64.)
_PIECE = 256 * 1024

_SOME_ZEROES = memoryview(ZEROES)

_WHOLE, _CHAINED = 1, 2

_SIZE = Struct(">Q")
_PART = Struct(f">{LENGTH}sQQ{LENGTH}s")


def chunk_size(size: int) -> int:
    """Return how long the chunks are of an image of *size* bytes: a power of two, in bytes."""
    length = MIN_CHUNK
    while size > length * MAX_CHUNKS:
        length *= 2
    return length


@lru_cache(maxsize=16)
def digest_of_zeroes(length: int) -> bytes:
    """Return the digest of *length* zero bytes."""
    hasher = blake3()
    for at in range(0, length, len(ZEROES)):
        hasher.update(ZEROES[: min(len(ZEROES), length - at)])
    return hasher.digest()


def digest_of(image: BlockingReads, offset: int, length: int) -> bytes:
    """Return the digest of a range; may wait for the disk.

    :param length: in bytes, at least 1.
    :raises OSError: as ``image.file.Image.read_into``.
    """
    if image.may_have_holes and image.is_all_hole(offset, length):
        return digest_of_zeroes(length)
    hasher = blake3()
    scratch = memoryview(bytearray(min(length, _PIECE)))
    end = offset + length
    while offset < end:
        # What was read of a hole would fill the page cache with zeroes: that takes several times as
        # long as hashing.
        data = image.next_data(offset, end) if image.may_have_holes else offset
        while offset < data:
            piece = _SOME_ZEROES[: data - offset]
            hasher.update(piece)
            offset += len(piece)
        piece = scratch[: end - offset]
        if piece:
            image.read_into(piece, offset)
            hasher.update(piece)
            offset += len(piece)
    return hasher.digest()


def reads_as_zeroes(image: BlockingReads, offset: int, length: int) -> bool:
    """Tell whether a range reads as zeroes; only what isn't a hole is read. May wait for the disk.

    :raises OSError: as ``image.file.Image.read_into``.
    """
    scratch = memoryview(bytearray(min(length, _PIECE)))
    for extent in image.extents(offset, length):
        if not extent.data:
            continue
        at = extent.offset
        while at < extent.end:
            piece = scratch[: extent.end - at]
            image.read_into(piece, at)
            if not ZEROES.startswith(piece):
                return False
            at += len(piece)
    return True


def digests_of(image: BlockingReads, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
    """Return the digest of each (offset, length); may wait for the disk. Raises as `digest_of`."""
    return [digest_of(image, offset, length) for offset, length in ranges]


class ImageDigest:
    """One digest of a whole image, made from the ranges that were found equal in two copies.

    Both sides tell theirs the same ranges in the same order, and so have the same digest. Each
    chunk has a value. It is the chunk's digest, if all of it was compared at once. When a part of
    it is compared, because that was changed since, the value becomes the digest of the value before
    (zeroes if there was none), the part's offset and length in bytes (64 bits each, big-endian) and
    the part's digest. The image's is the digest of its size (64 bits, big-endian) and of all
    values, in their order.

    :param size: of the image, in bytes.
    :ivar compared: bytes that were compared and equal, some of them more than once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._chunk = chunk_size(size)
        count = -(-size // self._chunk)
        self._values = bytearray(LENGTH * count)
        self._kinds = bytearray(count)
        self.compared = 0

    def add(self, offset: int, length: int, digest: bytes | None) -> None:
        """A range was found to be equal.

        :param digest: of the range, which lies in one chunk; or None: it reads as zeroes, and may
            be of any length.
        """
        self.compared += length
        if digest is not None:
            self._add(offset, length, digest)
            return
        end, chunk = offset + length, self._chunk
        if offset % chunk:
            stop = min(end, offset - offset % chunk + chunk)
            self._add(offset, stop - offset, digest_of_zeroes(stop - offset))
            offset = stop
        first, last = offset // chunk, end // chunk
        if first < last:
            self._values[first * LENGTH : last * LENGTH] = digest_of_zeroes(chunk) * (last - first)
            self._kinds[first:last] = bytes((_WHOLE,)) * (last - first)
            offset = last * chunk
        if offset < end:
            self._add(offset, end - offset, digest_of_zeroes(end - offset))

    def _add(self, offset: int, length: int, digest: bytes) -> None:
        index, within = divmod(offset, self._chunk)
        place = slice(index * LENGTH, (index + 1) * LENGTH)
        if not within and length == min(self._chunk, self._size - offset):
            self._values[place] = digest
            self._kinds[index] = _WHOLE
        else:
            before = bytes(self._values[place])
            self._values[place] = blake3(_PART.pack(before, offset, length, digest)).digest()
            self._kinds[index] = _CHAINED

    @property
    def text(self) -> str | None:
        """The digest, for people: ``blake3:`` and 64 hexadecimal digits where each chunk was
        compared at once, so that anybody can make it of the image; else ``blake3-chained:`` and as
        many. None while there are chunks of which nothing was compared.
        """
        if not all(self._kinds):
            return None
        name = "blake3-chained" if _CHAINED in self._kinds else "blake3"
        hasher = blake3(_SIZE.pack(self._size))
        hasher.update(self._values)
        return f"{name}:{hasher.hexdigest()}"


def image_digest(image: BlockingReads) -> str:
    """Return the digest of a whole image, as `ImageDigest.text` has it; waits for the disk.

    :raises OSError: as ``image.file.Image.read_into``.
    """
    made, chunk = ImageDigest(image.size), chunk_size(image.size)
    for offset in range(0, image.size, chunk):
        length = min(chunk, image.size - offset)
        made.add(offset, length, digest_of(image, offset, length))
    assert made.text is not None
    return made.text
