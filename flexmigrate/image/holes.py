"""Making zeroes in the cheapest way that a file or a device has, and keeping holes that are there.

Each way of zeroing either does the whole range or is not supported, in which case the next is
tried; writing zeroes is the last, and always there. No state: all is asked of the descriptor.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator

from flexmigrate.image.exact import Readable, write_exact
from flexmigrate.image.extents import Extents
from flexmigrate.image.kernel import calls as linux
from flexmigrate.image.zeroes import ZEROES

# Gives the storage back; on a device, only if it can be done without writing.
_PUNCH = linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE
# Keeps or allocates the storage; on a device the kernel may have to write zeroes.
_ALLOCATE = linux.FALLOC_FL_ZERO_RANGE | linux.FALLOC_FL_KEEP_SIZE


def around(
    extents: Extents, length: int, offset: int, runs: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of what has to be written of *length* bytes at *offset*: all but those
    parts of its *runs* of zeroes that meet a hole. Relative to its first byte, ascending.

    :param runs: from :func:`flexmigrate.image.zeroes.zero_runs`.
    :raises OSError: as `Extents.walk`.
    """
    done = 0
    for start, end in runs:
        for extent in extents.walk(offset + start, offset + end):
            if extent.data:
                continue
            hole = extent.offset - offset
            if done < hole:
                yield done, hole
            done = hole + extent.length
    if done < length:
        yield done, length


def write_around(
    fd: int, extents: Extents, view: Readable, offset: int, runs: Iterable[tuple[int, int]]
) -> None:
    """Write *view* at *offset*, but for what ``around`` leaves out.

    :raises OSError: as pwrite(2) and lseek(2). Some of it may have been written by then.
    """
    view = memoryview(view)
    for start, end in around(extents, len(view), offset, runs):
        write_exact(fd, view[start:end], offset + start)


def zero(
    fd: int,
    offset: int,
    length: int,
    *,
    granule: int,
    may_punch: bool,
    fast_only: bool,
    is_trusted: bool = True,
) -> None:
    """Make a range read as zeroes, to the byte.

    :param is_trusted: what fallocate(2) says to have zeroed does read as zeroes; else they are
        written.
    :param granule: bytes; what fallocate(2) needs its ranges aligned to. 1 for a file, where the
        kernel sees to the edges. More than 1 only for a device.
    :param may_punch: the storage may be given back.
    :param fast_only: fail rather than write zeroes, as NBD_CMD_FLAG_FAST_ZERO has it.
    :raises OSError: ``ENOTSUP`` if only writing would do and *fast_only* is set; else as
        fallocate(2) and pwrite(2).
    """
    ways = [_PUNCH] if may_punch and is_trusted else []
    if is_trusted and (granule == 1 or not fast_only):
        ways.append(_ALLOCATE)
    start, end = inner(offset, length, granule)
    if start < end and not any(_fallocated(fd, way, start, end - start) for way in ways):
        if fast_only:
            raise OSError(errno.ENOTSUP, "zeroes can't be made here faster than by writing them")
        start = end = offset
    _write_zeroes(fd, offset, start)
    _write_zeroes(fd, end, offset + length)


def trim(fd: int, offset: int, length: int, *, granule: int) -> None:
    """Give back the storage of a range as far as that is possible. What it then holds is undefined.

    :param granule: as for :func:`zero`; less than a whole one is left alone.
    :raises OSError: as fallocate(2), but not because it isn't supported.
    """
    start, end = inner(offset, length, granule)
    if start >= end or _fallocated(fd, _PUNCH, start, end - start) or granule == 1:
        return
    # A device that can forget, but can't promise zeroes.
    try:
        linux.discard(fd, start, end - start)
    except OSError as error:
        if error.errno not in linux.FALLOCATE_UNSUPPORTED:
            raise


def inner(offset: int, length: int, granule: int) -> tuple[int, int]:
    """Return (start, end) of the whole granules in a range; both are *offset* if there are none."""
    start = -(-offset // granule) * granule
    end = (offset + length) // granule * granule
    return (start, end) if start < end else (offset, offset)


def _fallocated(fd: int, mode: int, offset: int, length: int) -> bool:
    try:
        linux.fallocate(fd, mode, offset, length)
    except OSError as error:
        if error.errno in linux.FALLOCATE_UNSUPPORTED:
            return False
        raise
    return True


def _write_zeroes(fd: int, start: int, end: int) -> None:
    zeroes = memoryview(ZEROES)
    for offset in range(start, end, len(zeroes)):
        write_exact(fd, zeroes[: end - offset], offset)
