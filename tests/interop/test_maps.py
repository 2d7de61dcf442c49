"""The extents of a sparse image, as everybody sees them who may be asked: all see the same."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from support.images import BLOCK, MIB, sparse_image
from support.programs import Programs, Served
from support.servers import Servers

# What nbdinfo calls a hole that reads as zeroes: NBD_STATE_HOLE and NBD_STATE_ZERO.
HOLE = 3

Extents = list[tuple[int, int, bool]]
"""(offset, length, whether there is data), in order, neighbours merged."""


def scattered(rng: random.Random, size: int) -> Iterator[tuple[int, int]]:
    """Return stretches of data, some next to each other, from one byte to many blocks."""
    at = rng.choice((0, rng.randrange(size // 8)))
    while at < size:
        length = rng.choice((1, 512, BLOCK, 3 * BLOCK, rng.randrange(1, 64 * BLOCK)))
        yield at, min(length, size - at)
        at += length + rng.choice((0, 1, BLOCK, 17 * BLOCK, rng.randrange(1, 256 * BLOCK)))


def merged(extents: Iterable[tuple[int, int, bool]]) -> Extents:
    """Join neighbours of the same kind."""
    joined: Extents = []
    for offset, length, data in extents:
        if joined and joined[-1][2] == data:
            start, before, _ = joined.pop()
            assert start + before == offset, "a gap"
            joined.append((start, before + length, data))
        else:
            joined.append((offset, length, data))
    return joined


def extents_of(image: Path) -> Extents:
    """Ask the filesystem."""
    found: Extents = []
    with image.open("rb") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            data = next_data(file.fileno(), at, size)
            if data > at:
                found.append((at, data - at, False))
            at = data if data == size else os.lseek(file.fileno(), data, os.SEEK_HOLE)
            if at > data:
                found.append((data, at - data, True))
    return found


def next_data(file: int, at: int, size: int) -> int:
    """Return where there is data next; *size* where nothing but a hole follows."""
    try:
        return os.lseek(file, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def nbdinfo(programs: Programs, uri: str) -> Extents:
    """Ask nbdinfo."""
    said = json.loads(programs.run("nbdinfo", "--map", "--json", uri))
    assert {each["type"] for each in said} <= {0, HOLE}
    return merged((each["offset"], each["length"], each["type"] == 0) for each in said)


def qemu(programs: Programs, place: str) -> Extents:
    """Ask qemu-img."""
    said = json.loads(
        programs.run("qemu-img", "map", "--force-share", "--output=json", "-f", "raw", place)
    )
    assert all(each["zero"] for each in said if not each["data"])
    return merged((each["start"], each["length"], each["data"]) for each in said)


@pytest.mark.parametrize("seed", range(5))
def test_everybody_sees_the_same_extents(programs: Programs, servers: Servers, seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice((MIB, 4 * MIB, 64 * MIB)) + 512 * rng.randrange(16)
    servers.image.unlink()
    sparse_image(servers.image, size, scattered(rng, size), seed)
    served = Served(servers, rng.choice(("tcp", "unix")))
    expected = extents_of(servers.image)
    assert {data for _, _, data in expected} == {True, False}
    assert sum(length for _, length, _ in expected) == size
    assert nbdinfo(programs, served.uri) == expected
    assert qemu(programs, served.uri) == expected
    assert qemu(programs, str(servers.image)) == expected
