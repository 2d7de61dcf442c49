"""The answers to BLOCK_STATUS: the extents of a range as a meta context describes them.

No I/O: the extents were looked up before.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import islice
from struct import Struct

from flexmigrate.image.extents import Extent
from flexmigrate.wire.constants import AllocationFlag

# Descriptors in one answer. The specification's limit is 2**20; this many are 8 KiB (16 KiB
# extended) in one reply, and a client asks again for the rest. To make the answer takes half
# a millisecond, for which others wait.
MAX_DESCRIPTORS = 1024

DIRTY = 1
"""The flag of ``flexmigrate:dirty``: a running migration still has to send these bytes."""

Descriptors = list[tuple[int, int]]

_EFFECT_LENGTH = Struct(">Q")
_ID = Struct(">I")
_HOLE = int(AllocationFlag.HOLE | AllocationFlag.ZERO)


def parse_filter(payload: bytes, known: Container[int]) -> tuple[int, list[int]]:
    """Return the effect length (bytes) and the context ids in a BLOCK_STATUS payload.

    Without ids if it isn't a list of different ids that are all *known*.
    """
    rest = payload[_EFFECT_LENGTH.size :]
    if not rest or len(rest) % _ID.size:
        return 0, []
    ids = [number for (number,) in _ID.iter_unpack(rest)]
    if len(set(ids)) < len(ids) or not all(number in known for number in ids):
        return 0, []
    return _EFFECT_LENGTH.unpack_from(payload)[0], ids


def allocation(extents: Iterable[Extent]) -> Descriptors:
    """Return (length in bytes, ``base:allocation`` flags) of each extent."""
    return [(extent.length, 0 if extent.data else _HOLE) for extent in extents]


def dirty(runs: Iterator[tuple[int, int]], offset: int, length: int, limit: int) -> Descriptors:
    """Return (length in bytes, DIRTY or 0) from *offset* on, at most *limit* of them.

    :param runs: the dirty (offset, length) runs within the range, ascending.
    """
    return list(islice(_dirty_and_clean(runs, offset, offset + length), limit))


def _dirty_and_clean(
    runs: Iterator[tuple[int, int]], at: int, end: int
) -> Iterator[tuple[int, int]]:
    for run_offset, run_length in runs:
        if run_offset > at:
            yield run_offset - at, 0
        yield run_length, DIRTY
        at = run_offset + run_length
    if at < end:
        yield end - at, 0
