"""Locks on the bytes that an image uses: they keep apart two images that have bytes in common under
different names, such as a file and a loop device of it, or a disk and a partition.

Each opening locks the range that it uses, in the image and in all that lies below it (``backing``),
by locks of open file descriptions (fcntl(2)); and as QEMU does, to be seen by it (``locks``). All
are read locks, for which a file needs only be readable: one says that the range is used, and that
nobody else may write there; a second one that it is written to. Each is taken before the others'
are looked at, so that of two openings at least one sees the other. Their bytes are far behind those
that a file has.

A mounted loop device of a file has no such locks; the kernel tells that it is claimed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from flexmigrate.errors import ImageError
from flexmigrate.image import backing, locks
from flexmigrate.image.backing import MOST, LoopDevice, Part

_USED = 1 << 62
_WRITTEN = _USED + MOST
"""Where the locks begin that say so of the first byte of a range."""

# What is below may be gone, deleted, or in another mount namespace: nobody finds it by that name.
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV})


class RangeLocks:
    """The locks of one opening; those in the image itself are held by its own descriptor.

    :ivar unlocked: why QEMU, or others that use the same bytes under another name, don't see this
        opening, and aren't seen; None if they do.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []
        self.unlocked: str | None = None

    @classmethod
    def take(cls, fd: int, path: str, *, read_only: bool) -> RangeLocks:
        """Lock what the image *fd* uses, in it and below it.

        :raises ImageError: some of it is in use; the text names the image and what is in the way.
        """
        taken = cls()
        try:
            taken._take(fd, path, read_only)
        except BaseException:
            taken.close()
            raise
        return taken

    def _take(self, fd: int, path: str, read_only: bool) -> None:
        with _opened(fd, path) as (parts, unlocked):
            self.unlocked = unlocked
            try:
                for each, part in parts:
                    _lock(each, path, part, read_only)
                _check(parts, path, read_only)
                for each, part in parts:
                    locks.lock_as_qemu(
                        each, _name(path, part), read_only=read_only, is_whole=part.is_whole
                    )
            except OSError as error:
                self.unlocked = error.strerror or str(error)
            _check_claims(parts, path, read_only)
            # These stay open, and are closed with the image.
            self._fds = [os.dup(each) for each, _ in parts if each != fd]

    def close(self) -> None:
        """Unlock it."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def check(fd: int, path: str, *, read_only: bool) -> None:
    """See, without taking any, that no lock stands in the way of `RangeLocks.take`.

    :raises ImageError: one does.
    """
    with _opened(fd, path) as (parts, _):
        with contextlib.suppress(OSError):  # no such locks can be had there
            _check(parts, path, read_only)
            for each, part in parts:
                locks.check(each, _name(path, part), read_only=read_only, is_whole=part.is_whole)
        _check_claims(parts, path, read_only)


def _taken(part: Part, read_only: bool) -> tuple[int, ...]:
    """Return where the locks begin that are taken of *part*."""
    used = (_USED,) if part.is_known else ()
    return used if read_only else (*used, _WRITTEN)


def _avoided(part: Part, read_only: bool) -> tuple[int, ...]:
    """Return where those begin that nobody else may have there."""
    if not part.is_known:
        return () if read_only else (_USED,)
    return (_WRITTEN,) if read_only else (_USED, _WRITTEN)


def _check(parts: list[tuple[int, Part]], path: str, read_only: bool) -> None:
    for fd, part in parts:
        if any(_is_locked(fd, begin, part) for begin in _avoided(part, read_only)):
            raise _in_use(fd, path, part)


def _check_claims(parts: list[tuple[int, Part]], path: str, read_only: bool) -> None:
    """See that the kernel lets nobody else write to these parts: by a loop device that is mounted,
    or claimed otherwise.
    """
    if read_only:
        return
    ours = {_identity(os.fstat(fd)) for fd, _ in parts}
    for device in backing.loop_devices():
        with contextlib.suppress(OSError):
            if _identity(os.stat(device.node)) in ours:
                continue  # the kernel has seen to it when the image was opened
            for node in filter(_is_claimed, _meeting(device, parts)):
                raise ImageError(
                    f"the image {path} is in use: {node} has the same bytes, and is mounted, used "
                    f"as swap, or part of something that is; it is a loop device of "
                    f"{device.part.path}"
                )


def _meeting(device: LoopDevice, parts: list[tuple[int, Part]]) -> list[str]:
    """Return the nodes of a loop device by which the kernel tells whether bytes that it has in
    common with *parts* are claimed: of its partitions, as one of them being claimed claims the
    whole device, too; or its own.
    """
    try:
        below = _identity(os.stat(device.part.path))
    except OSError:
        return []
    same = [part for fd, part in parts if part.is_known and _identity(os.fstat(fd)) == below]
    nodes = device.partitions or ((device.node, device.part),)
    return [node for node, part in nodes if any(each.meets(part.start, part.end) for each in same)]


def _is_claimed(node: str) -> bool:
    try:
        # O_EXCL without O_CREAT claims a device for this moment (open(2)).
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


@contextlib.contextmanager
def _opened(fd: int, path: str) -> Iterator[tuple[list[tuple[int, Part]], str | None]]:
    """Give the image and all below it, with a descriptor for each while the body runs; and why one
    has none.
    """
    with contextlib.ExitStack() as closing:
        parts: list[tuple[int, Part]] = []
        unlocked = None
        for part in backing.parts_of(path, os.fstat(fd)):
            if not parts:
                parts.append((fd, part))
                continue
            try:
                # O_NONBLOCK: what has the name by now may be a FIFO.
                below = os.open(part.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    unlocked = f"{part.path}, which lies below it: {error.strerror}"
                continue
            closing.callback(os.close, below)
            parts.append((below, part))
        yield parts, unlocked


def _identity(status: os.stat_result) -> tuple[int, ...]:
    if stat.S_ISBLK(status.st_mode):
        return (status.st_rdev,)  # it may have several nodes
    return status.st_dev, status.st_ino


def _name(path: str, part: Part) -> str:
    return path if part.path == path else f"{path} ({part.path}, which lies below it)"


def _in_use(fd: int, path: str, part: Part) -> ImageError:
    return ImageError(
        f"the image {_name(path, part)} is in use by another server, as a whole or in part, under "
        f"this name or another one{locks.told(fd)}"
    )


def _lock(fd: int, path: str, part: Part, read_only: bool) -> None:
    length = part.end - part.start
    try:
        for begin in _taken(part, read_only):
            locks.ofd(fd, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, begin + part.start, length)
    except BlockingIOError as error:  # a write lock, which isn't one of ours
        raise _in_use(fd, path, part) from error


def _is_locked(fd: int, begin: int, part: Part) -> bool:
    """Return whether anybody else has such a lock on a byte of *part*."""
    length = part.end - part.start
    return locks.ofd(fd, fcntl.F_OFD_GETLK, fcntl.F_WRLCK, begin + part.start, length) != (
        fcntl.F_UNLCK
    )
