"""Opening an image so that nobody else serves it: what may be opened, and that nobody else has it.

Whoever gets a descriptor from here holds its locks until it is closed (``locks``,
``range_locks``); two openings exclude each other inside one process too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass

from flexmigrate.errors import ImageError
from flexmigrate.image import locks, range_locks
from flexmigrate.image.disk import SYSTEM, identity
from flexmigrate.image.filesystems import filesystem_of
from flexmigrate.image.kernel import calls as linux
from flexmigrate.image.range_locks import RangeLocks
from flexmigrate.image.trust import BLOCK_DEVICE, Trust, trust_in


@dataclass(frozen=True)
class Opened:
    """An image that is open and locked.

    :ivar fd: the descriptor, for reading, and for writing unless asked otherwise.
    :ivar size: bytes.
    :ivar granule: bytes; 1 for a file, the logical block size of a device.
    :ivar identity: (device, inode): what tells whether a path still leads to it.
    :ivar writable: the process may write to the file, whether it is open for that or not.
    :ivar trust: what is believed of the filesystem below it.
    :ivar range_locks: what is to be closed with *fd*.
    """

    fd: int
    size: int
    is_block_device: bool
    granule: int
    identity: tuple[int, int]
    writable: bool
    trust: Trust
    range_locks: RangeLocks


_WITH_OTHER_DEVICES = ("btrfs", "overlay", "bcachefs")
"""Filesystems whose files have another device for stat(2) than their locks have."""


def open_image(path: str, *, read_only: bool) -> Opened:
    """Open and lock the image at *path*; several may have it open if all of them only read.

    :raises ImageError: it can't be opened, is neither a regular file nor a block device, can't be
        written to, or is in use. The text names the path and the cause.
    """
    fd = _open(path, read_only)
    with contextlib.ExitStack() as closing:
        closing.callback(os.close, fd)
        try:
            locks.lock(fd, path, read_only=read_only)
            taken = RangeLocks.take(fd, path, read_only=read_only)
            closing.callback(taken.close)
            opened = _describe(fd, path, read_only, taken)
        except OSError as error:
            raise ImageError(f"cannot use the image {path}: {error.strerror}") from error
        closing.pop_all()
        return opened


def try_opening(path: str, *, read_only: bool) -> None:
    """See whether `open_image` would succeed, without taking a lock that it could meet.

    A block device that is to be written to is claimed for a moment, as that is the only way to know
    whether somebody else has.

    :raises ImageError: as `open_image`.
    """
    fd = _open(path, read_only)
    try:
        name = filesystem_of(fd).name
        is_exact = name not in _WITH_OTHER_DEVICES or stat.S_ISBLK(os.fstat(fd).st_mode)
        locks.check_flock(fd, path, read_only=read_only, is_exact=is_exact)
        range_locks.check(fd, path, read_only=read_only)
    finally:
        os.close(fd)


def _open(path: str, read_only: bool) -> int:
    """Return a descriptor of what can be an image, and can be written to unless *read_only*."""
    try:
        is_block_device = _check_kind(path)
        fd = os.open(path, _flags(read_only, is_block_device) | os.O_CLOEXEC)
    except OSError as error:
        text = f"cannot open the image {path}: {error.strerror}"
        if error.errno == errno.EBUSY:
            text += "; it is mounted, used as swap, or part of something that is, or another server"
            text += " has it, or a part of it"
        raise ImageError(text) from error
    try:
        if stat.S_ISBLK(os.fstat(fd).st_mode) != is_block_device:
            raise ImageError(f"the image {path} was replaced while it was being opened")
        os.set_blocking(fd, True)  # io_uring wouldn't wait for the disk
        if not read_only:
            _check_writable(fd, path, is_block_device)
    except OSError as error:
        os.close(fd)
        raise ImageError(f"cannot use the image {path}: {error.strerror}") from error
    except ImageError:
        os.close(fd)
        raise
    return fd


def _check_writable(fd: int, path: str, is_block_device: bool) -> None:
    """See that what could be opened for writing can be written to, too."""
    if is_block_device and linux.is_read_only_device(fd):
        raise ImageError(
            f"cannot open the image {path}: the device is read-only ('blockdev --getro {path}')"
        )
    if not is_block_device and _is_swap(os.path.realpath(path)):
        raise ImageError(f"cannot open the image {path}: it is used as swap")


def _is_swap(path: str) -> bool:
    """Return whether a file is used as swap (proc(5), "swaps"): each write would be refused."""
    try:
        with open("/proc/swaps", "rb") as swaps:
            lines = swaps.read().splitlines()[1:]
    except OSError:
        return False
    # Blanks in a path stand there as \\040, in octal.
    return any(
        re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), line.split()[0])
        == os.fsencode(path)
        for line in lines
        if line.strip()
    )


def _check_kind(path: str) -> bool:
    """Return whether it is a block device; asked before opening, which may do something to others.

    :raises ImageError: it is no image.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ImageError(f"cannot use the image {path}: neither a regular file nor a block device")
    return stat.S_ISBLK(mode)


def _flags(read_only: bool, is_block_device: bool) -> int:
    mode = os.O_RDONLY if read_only else os.O_RDWR
    if not is_block_device:
        return mode | os.O_NONBLOCK  # what has the name by then may be a FIFO
    # For a device, O_EXCL without O_CREAT means: not while it is mounted, or part of something that
    # is (open(2)). Writing beneath a mounted filesystem destroys it.
    return mode if read_only else mode | os.O_EXCL


def _describe(fd: int, path: str, read_only: bool, taken: RangeLocks) -> Opened:
    status = os.fstat(fd)
    opened = (status.st_dev, status.st_ino)
    # Whoever held the lock may have unlinked the file before letting go of it, as a source does
    # that has given its image away: what we hold then is nobody's image any more.
    if identity(SYSTEM, path) != opened:
        raise ImageError(f"the image {path} was replaced while it was being opened")
    is_block_device = stat.S_ISBLK(status.st_mode)
    return Opened(
        fd=fd,
        size=os.lseek(fd, 0, os.SEEK_END),
        is_block_device=is_block_device,
        granule=linux.logical_block_size(fd) if is_block_device else 1,
        identity=opened,
        writable=not read_only
        or status.st_uid == os.geteuid()
        or os.access(path, os.W_OK, effective_ids=True),
        trust=BLOCK_DEVICE
        if is_block_device
        else trust_in(fd, os.path.dirname(os.path.realpath(path)), read_only=read_only),
        range_locks=taken,
    )
