"""Opening an image so that nobody else serves it: what may be opened, and the advisory lock on it.

Whoever gets a descriptor from here holds the lock until it is closed. The lock is flock(2)'s: it
belongs to the open file, so that it goes with the process however that ends, and two openings
exclude each other inside one process too.
"""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import dataclass

from flexmigrate.errors import ImageError
from flexmigrate.image import linux
from flexmigrate.image.disk import SYSTEM, identity
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
    """

    fd: int
    size: int
    is_block_device: bool
    granule: int
    identity: tuple[int, int]
    writable: bool
    trust: Trust


def open_image(path: str, *, read_only: bool) -> Opened:
    """Open and lock the image at *path*; several may have it open if all of them only read.

    :raises ImageError: it can't be opened, is neither a regular file nor a block device, or is in
        use. The text names the path and the cause.
    """
    try:
        is_block_device = _check_kind(path)
        fd = os.open(path, _flags(read_only, is_block_device))
    except OSError as error:
        raise ImageError(f"cannot open the image {path}: {error.strerror}") from error
    try:
        _lock(fd, path, read_only)
        return _describe(fd, path, read_only)
    except OSError as error:
        os.close(fd)
        raise ImageError(f"cannot use the image {path}: {error.strerror}") from error
    except ImageError:
        os.close(fd)
        raise


def _check_kind(path: str) -> bool:
    """Return whether it is a block device; asked before opening, for opening a FIFO would wait."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ImageError(f"cannot use the image {path}: neither a regular file nor a block device")
    return stat.S_ISBLK(mode)


def _flags(read_only: bool, is_block_device: bool) -> int:
    if read_only:
        return os.O_RDONLY
    # For a device, O_EXCL without O_CREAT means: not while it is mounted, or part of something that
    # is (open(2)). Writing beneath a mounted filesystem destroys it.
    return os.O_RDWR | (os.O_EXCL if is_block_device else 0)


def _lock(fd: int, path: str, read_only: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ImageError(f"the image {path} is in use by another server") from error


def _describe(fd: int, path: str, read_only: bool) -> Opened:
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
        else trust_in(fd, os.path.dirname(os.path.realpath(path))),
    )
