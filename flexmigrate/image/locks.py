"""The locks on an open image: ours, and those by which QEMU and its tools know of each other.

Ours is flock(2)'s. QEMU, qemu-img, qemu-nbd and qemu-io lock single bytes of the file (of a device
node, too) with locks of open file descriptions (fcntl(2), ``F_OFD_SETLK``): byte 100 + n says that
whoever has the file open makes use of permission n, byte 200 + n that it doesn't share it with
others. All of these are read locks, so that many can have them; whether somebody has one is found
out by testing for a write lock. See ``block/file-posix.c`` there (``RAW_LOCK_PERM_BASE``,
``RAW_LOCK_SHARED_BASE``), and "Image locking" in QEMU's manual. We keep to the same rules: so each
sees the other.

All of them belong to the open file, and go with the process however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from flexmigrate.errors import ImageError

# From QEMU's include/block/block-common.h: BLK_PERM_CONSISTENT_READ to BLK_PERM_RESIZE, as numbers
# of bits.
READ, WRITE, WRITE_UNCHANGED, RESIZE = range(4)

_IN_USE, _NOT_SHARED = 100, 200  # where their bytes begin

_NAMES = {
    READ: "read it",
    WRITE: "write to it",
    WRITE_UNCHANGED: "write to it what it holds",
    RESIZE: "change its size",
}

# Nobody else may write, or change the size: the first would be lost, the second isn't expected.
_SHARED = frozenset((READ, WRITE_UNCHANGED))

_MOST_TOLD = 3
"""Processes that are named."""


def lock(fd: int, path: str, *, read_only: bool) -> None:
    """Lock an image for ourselves alone, or among those who only read it, by flock(2).

    :raises ImageError: it is in use by another server; the text names the path.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ImageError(f"the image {path} is in use by another server{told(fd)}") from error


def lock_as_qemu(fd: int, path: str, *, read_only: bool, is_whole: bool = True) -> None:
    """Take the locks by which QEMU and we see each other.

    :param is_whole: all of the file is used, and not only a part of it.
    :raises ImageError: it is in use; the text names the path and, as far as that is known, by whom.
    :raises OSError: such locks can't be had there: a network filesystem without a lock service,
        FUSE without locks, an old kernel.
    """
    used, not_shared = _permissions(read_only, is_whole)
    try:
        # As QEMU does: first taken, then looked at the others', so that of two at least one sees
        # the other.
        for byte in (*(_IN_USE + each for each in used), *(_NOT_SHARED + e for e in not_shared)):
            ofd(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, byte)
    except BlockingIOError as error:
        raise ImageError(
            f"the image {path} is in use: another program has locked it{told(fd)}"
        ) from error
    check(fd, path, read_only=read_only, is_whole=is_whole)


def check(fd: int, path: str, *, read_only: bool, is_whole: bool = True) -> None:
    """See, without taking any, that no lock as QEMU's stands in the way of what we would do.

    :param is_whole: all of the file is used, and not only a part of it.
    :raises ImageError: one does.
    :raises OSError: such locks can't be had there.
    """
    used, not_shared = _permissions(read_only, is_whole)
    for each in used:
        if _is_locked(fd, _NOT_SHARED + each):
            raise _in_use(fd, path, f"lets nobody else {_NAMES[each]}")
    for each in not_shared:
        if _is_locked(fd, _IN_USE + each):
            raise _in_use(fd, path, f"may {_NAMES[each]}")


def read_by_others(fd: int) -> str | None:
    """Return who else has the image open, to be read, and locked for that as we do, in words; None
    if nobody has, or that isn't known.
    """
    try:
        is_read = _is_locked(fd, _IN_USE + READ)
    except OSError:  # such locks can't be had there
        return None
    return f"another program reads the image, too{told(fd)}" if is_read else None


def check_flock(fd: int, path: str, *, read_only: bool, is_exact: bool) -> None:
    """See, without taking it, that no other server has our own kind of lock (proc(5), "locks").

    :param read_only: others that only read are no concern.
    :param is_exact: stat(2) tells the same device of the file as its locks have; else a lock on
        another file may be taken for one on this.
    :raises ImageError: one has, or seems to have.
    """
    status = os.fstat(fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    kind = "WRITE" if read_only else r"\S+"
    locks = re.compile(rf"FLOCK +\S+ +{kind} +(?P<pid>-?\d+) (?P<device>\S+):{status.st_ino} ")
    with contextlib.suppress(OSError):
        for found in locks.finditer(Path("/proc/locks").read_text()):
            if not is_exact or found["device"] == device:
                seems = "is" if is_exact else "seems to be"
                raise ImageError(
                    f"the image {path} {seems} in use by another server: locked by process "
                    f"{found['pid']}"
                )


def _permissions(read_only: bool, is_whole: bool) -> tuple[list[int], list[int]]:
    """Return what we make use of, and what we share with nobody."""
    used = [READ] if read_only else [READ, WRITE]
    if not is_whole:
        return used, []  # others may use other parts: see `range_locks`
    return used, [each for each in (READ, WRITE, WRITE_UNCHANGED, RESIZE) if each not in _SHARED]


def _in_use(fd: int, path: str, how: str) -> ImageError:
    return ImageError(
        f"the image {path} is in use by QEMU, or by another program that locks images as QEMU "
        f"does. It {how}{told(fd)}: end it first"
    )


def _is_locked(fd: int, byte: int) -> bool:
    """Return whether anybody else has a lock there."""
    return ofd(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte) != fcntl.F_UNLCK


def ofd(fd: int, command: int, kind: int, start: int, length: int = 1) -> int:
    """Make a call about a range of bytes, by a lock of the open file description (fcntl(2)); return
    the kind of lock that the kernel answers with.

    :raises OSError: as fcntl(2); BlockingIOError where another lock is in the way.
    """
    # struct flock, in the machine's own alignment: type, whence, start, length, process (0).
    asked = struct.pack("hhqqi0q", kind, os.SEEK_SET, start, length, 0)
    answer: int = struct.unpack_from("h", fcntl.fcntl(fd, command, asked))[0]
    return answer


def told(fd: int) -> str:
    """Return who else has the file open, in brackets, to stand behind a text; empty if nobody is
    known.
    """
    found: list[str] = []
    with contextlib.suppress(OSError):  # there may be no /proc
        found.extend(holders(fd))
    more = ", …" if len(found) > _MOST_TOLD else ""
    return f" ({', '.join(found[:_MOST_TOLD])}{more})" if found else ""


def holders(fd: int) -> Iterator[str]:
    """Tell which other processes have the same file open, as far as we may know.

    The kernel doesn't tell who has a lock of an open file description.
    """
    ours = os.fstat(fd)
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(_is_same(each, ours) for each in (process / "fd").iterdir()):
                name = (process / "comm").read_text().strip()
                yield f"process {process.name}, {name}"


def _is_same(link: Path, ours: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        theirs = link.stat()
        if stat.S_ISBLK(ours.st_mode):
            return stat.S_ISBLK(theirs.st_mode) and theirs.st_rdev == ours.st_rdev
        return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
    return False
