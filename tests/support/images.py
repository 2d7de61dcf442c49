"""Images for tests, and the one comparison that all of them trust: every byte, holes included."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

MIB = 1 << 20
BLOCK = 4096
_PIECE = MIB


def random_image(path: Path, size: int, seed: int = 1) -> Path:
    """Make an image of *size* bytes without a hole, the same for the same seed."""
    source = random.Random(seed)
    with path.open("wb") as image:
        for length in _pieces(size):
            image.write(source.randbytes(length))
    return path


def sparse_image(path: Path, size: int, extents: Iterator[tuple[int, int]], seed: int = 1) -> Path:
    """Make an image of *size* bytes that has random data in *extents* (offset, length) only."""
    source = random.Random(seed)
    with path.open("wb") as image:
        image.truncate(size)
        for offset, length in extents:
            image.seek(offset)
            for piece in _pieces(length):
                image.write(source.randbytes(piece))
    return path


def blank_image(path: Path, size: int) -> Path:
    """Make an image that is one hole of *size* bytes."""
    return sparse_image(path, size, iter(()))


def filesystem_image(path: Path, size: int, contents: Path) -> Path:
    """Make an image with an ext4 filesystem that holds the files of the folder *contents*."""
    found = shutil.which("mke2fs", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError("mke2fs (Debian's package e2fsprogs) is needed to make the image")
    blank_image(path, size)
    subprocess.run(
        [found, "-q", "-F", "-t", "ext4", "-b", str(BLOCK), "-d", str(contents), str(path)],
        check=True,
    )
    return path


def allocated(path: Path) -> int:
    """Return how many bytes of disk the image occupies."""
    return path.stat().st_blocks * 512


def difference(left: Path, right: Path) -> str | None:
    """Compare two images whole; return None if they are equal, else what differs first."""
    sizes = left.stat().st_size, right.stat().st_size
    if sizes[0] != sizes[1]:
        return f"{left} has {sizes[0]} bytes, {right} has {sizes[1]}"
    with left.open("rb") as one, right.open("rb") as other:
        for start, length in zip(itertools.count(0, _PIECE), _pieces(sizes[0])):
            if (mine := one.read(length)) != (theirs := other.read(length)):
                at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
                return (
                    f"{left} and {right} differ first at byte {start + at}"
                    f" (block {(start + at) // BLOCK}): {mine[at]:#04x} is not {theirs[at]:#04x}"
                )
    return None


def assert_same(left: Path, right: Path) -> None:
    """Raise `AssertionError`, naming the first byte that differs, unless the images are equal."""
    found = difference(left, right)
    assert found is None, found


def _pieces(length: int) -> Iterator[int]:
    """Divide *length* into pieces that memory does not notice."""
    while length > 0:
        piece = min(length, _PIECE)
        yield piece
        length -= piece
