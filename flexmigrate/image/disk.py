"""The disk beneath file names: the few calls that durability depends on, and how small files are
kept with them.

A record that decides who owns an image must be there after a crash, whole, or not at all. The calls
for that are here: :func:`replace` and :func:`remove`. They make their system calls through a
:class:`Disk`, so that a test can simulate a machine that loses, when it crashes, everything that
was not synced. The bytes of the image itself are written by ``file.py``.

A disk promises little: after a crash of the machine, data written to a file is certainly
there only if fsync(2) on the file has returned since, and a name that was made, removed or changed
is certainly so only if fsync(2) on its folder has returned since. (See the notes in fsync(2); with
rename(2) a name leads to the old file or to the new one, but never to neither.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import secrets
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from flexmigrate.errors import ImageError
from flexmigrate.image.kernel import calls as linux

PUBLIC_MODE = 0o644
"""The mode of a file that everybody may read, and its owner write."""

SECRET_MODE = 0o600
"""The mode of a file for its owner only."""

_NEW_SUFFIX = ".new"

# In a folder that others may write to, a name could be a link to anything.
_UNTRUSTING = os.O_NOFOLLOW | os.O_CLOEXEC

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

# A name that is too long for its filesystem doesn't exist, either.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class Disk(Protocol):
    """Calls of the operating system by their names in :mod:`os`; section 2 of the manual has them.

    All may wait for the disk, and raise OSError as the kernel has it.
    """

    def open(self, path: str, flags: int, mode: int = ...) -> int:
        """Return a descriptor of what *path* leads to."""

    def read(self, fd: int, length: int, /) -> bytes:
        """Return up to *length* of the next bytes; none at the end of the file."""

    def write(self, fd: int, data: bytes, /) -> int:
        """Write *data*, or less of it; return how many bytes that was."""

    def fsync(self, fd: int) -> None:
        """Make a file's bytes, or a folder's names, durable."""

    def close(self, fd: int) -> None:
        """Close a descriptor."""

    def replace(self, old: str, new: str) -> None:
        """Rename *old* to *new*, replacing it."""

    def unlink(self, path: str) -> None:
        """Remove a name."""

    def stat(self, path: str) -> os.stat_result:
        """Return the status of the file that *path* leads to."""

    def lstat(self, path: str) -> os.stat_result:
        """Return the status of *path* itself, even if it is a link."""

    def fstat(self, fd: int) -> os.stat_result:
        """Return the status of an open file."""

    def getxattr(self, path: str, attribute: str, /) -> bytes:
        """Return an extended attribute of the file that *path* leads to."""

    def setxattr(self, fd: int, attribute: str, value: bytes, /) -> None:
        """Set an extended attribute of an open file."""

    def removexattr(self, fd: int, attribute: str, /) -> None:
        """Remove an extended attribute of an open file."""


SYSTEM: Disk = os
"""The disk of this machine: the module itself."""


@dataclass(frozen=True, slots=True)
class Writers:
    """The users who may have written a record of an image, besides root and us: those who may write
    to the image, who could do to it whatever a record of theirs could have us do.

    :ivar owner: of the image.
    :ivar group: that may write to the image; None if its mode lets none.
    """

    owner: int
    group: int | None = None

    @classmethod
    def of(cls, image: os.stat_result) -> Writers:
        """Return those of an image."""
        return cls(image.st_uid, image.st_gid if image.st_mode & stat.S_IWGRP else None)

    def has(self, user: int) -> bool:
        """Return whether *user* is one of them."""
        return user == self.owner or (self.group is not None and _is_member(user, self.group))


def _is_member(user: int, group: int) -> bool:
    """Return whether a user is in a group; False of one that this host doesn't know."""
    try:
        entry = pwd.getpwuid(user)
    except KeyError:
        return False
    return group in os.getgrouplist(entry.pw_name, entry.pw_gid)


class UntrustedFile(ImageError):
    """A file has the name of one of ours, but may have been put there by somebody else."""


def replace(disk: Disk, path: str, data: bytes, mode: int = PUBLIC_MODE) -> None:
    """Replace the content of the file at *path* by *data*, durably and atomically.

    A reader, also after a crash, finds either the whole old content or all of *data*. Once
    this has returned, it is *data*, in a file that we have made.

    :param mode: its permissions, from the start.
    :raises OSError: it is as it was; or, only if the folder's fsync(2) failed, it is *data* now and
        may be either after a crash. The error names *path*.
    """
    # A name that nobody can have prepared, and that fits wherever *path* does.
    folder = os.path.dirname(os.path.abspath(path))
    new = os.path.join(folder, f".flexmigrate-{secrets.token_hex(8)}{_NEW_SUFFIX}")
    with about(path):
        fd = disk.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _UNTRUSTING, mode)
        try:
            _fill(disk, fd, data)
            disk.replace(new, path)
        except OSError:
            with contextlib.suppress(OSError):
                disk.unlink(new)
            raise
        sync_folder(disk, path)


def _fill(disk: Disk, fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[disk.write(fd, data) :]
        # Before it has its name: else the name could outlive a crash, and what it leads to not.
        disk.fsync(fd)
    finally:
        disk.close(fd)


@contextlib.contextmanager
def about(path: str) -> Iterator[None]:
    """Put *path* into errors of the body: those of descriptors have no name, and the name of a
    temporary file is of no use.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def remove(disk: Disk, path: str) -> None:
    """Remove the name *path*, durably. It is no error if there is none.

    :raises OSError: it is still there; or, only if the folder's fsync(2) failed, it is gone but may
        come back after a crash.
    """
    with about(path):
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(path)
        # Also where there was none: it may have been removed just now, and not durably.
        sync_folder(disk, path)


def read(disk: Disk, path: str, limit: int, writers: Writers | None = None) -> bytes | None:
    """Return the content of the file at *path*, at most *limit* bytes; None if there is no file.

    :param writers: the users who may have written it, besides root and us.
    :raises UntrustedFile: as `is_there`.
    :raises OSError: as open(2) and read(2), for any other reason.
    """
    if not is_there(disk, path, writers):
        return None
    with about(path):
        # O_NONBLOCK: for what has been put there since.
        fd = disk.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | _UNTRUSTING)
        try:
            _check(disk, path, disk.fstat(fd), writers)
            data = b""
            while len(data) < limit and (more := disk.read(fd, limit - len(data))):
                data += more
            return data
        finally:
            disk.close(fd)


def is_there(disk: Disk, path: str, writers: Writers | None = None) -> bool:
    """Return whether there is a file of ours at *path*.

    In a folder that others may write to, anybody could have put something there. Ours are regular
    files that belong to us, to root, to one of *writers*, or to the owner of a folder that nobody
    else may write to; that nobody else may write to; and that in a folder that others may write to
    have no second name, either.

    :param writers: the users who may have written it, besides root and us.
    :raises UntrustedFile: there is something, and it isn't one of these.
    :raises OSError: it can't be told, e.g. because a folder may not be searched.
    """
    try:
        status = disk.lstat(path)
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return False
        raise
    _check(disk, path, status, writers)
    return True


def _check(disk: Disk, path: str, status: os.stat_result, writers: Writers | None) -> None:
    remove = "rmdir" if stat.S_ISDIR(status.st_mode) else "rm"
    fault, advice = (
        "",
        f"find out who has put it there, and remove it: {remove} {shlex.quote(path)}",
    )
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        fault = f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no regular file')}"
    elif not _may_have_written(disk, path, status.st_uid, writers):
        fault = (
            f"it belongs to user {status.st_uid}, who is neither us nor root, and may not write to "
            "the image"
        )
        advice += f"; if it is right, chown {os.geteuid()} {shlex.quote(path)}"
    elif mode & _OTHERS_WRITE:
        fault = f"others than its owner, user {status.st_uid}, may write to it"
        advice += f"; if it is right, chmod go-w {shlex.quote(path)}"
    elif status.st_nlink > 1 and _is_open_to_others(disk, path):
        fault = "it has a second name, and others may write to its folder"
    if fault:
        raise UntrustedFile(
            f"{path} can't be trusted: {fault} (mode {mode:04o}); nothing is done with the image "
            f"before that is settled: {advice}"
        )


def _may_have_written(disk: Disk, path: str, user: int, writers: Writers | None) -> bool:
    if user in (0, os.geteuid()) or (writers is not None and writers.has(user)):
        return True
    # Who alone may make files there could put another image there, too; it may be gone by now.
    folder = disk.stat(os.path.dirname(os.path.abspath(path)))
    return folder.st_uid == user and not folder.st_mode & _OTHERS_WRITE


def _is_open_to_others(disk: Disk, path: str) -> bool:
    return bool(disk.stat(os.path.dirname(os.path.abspath(path))).st_mode & _OTHERS_WRITE)


def exists(disk: Disk, path: str) -> bool:
    """Return whether the name *path* exists, even as a broken link.

    :raises OSError: that can't be told, e.g. because a folder may not be searched.
    """
    try:
        disk.lstat(path)
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return False
        raise
    return True


def identity(disk: Disk, path: str) -> tuple[int, int]:
    """Return the (device, inode) that *path* leads to now.

    :raises OSError: as stat(2).
    """
    status = disk.stat(path)
    return status.st_dev, status.st_ino


def file_id(disk: Disk, path: str) -> str:
    """Return an id that tells the file at *path* from every later one of that name: its inode's
    number, and its time of creation, if the filesystem has it. Empty for anything but a file: the
    node of a device is made anew at each boot.

    :raises OSError: as stat(2), unless there is nothing.
    """
    try:
        status = disk.stat(path)
    except FileNotFoundError:
        return ""
    if not stat.S_ISREG(status.st_mode):
        return ""
    birth = linux.birth_time(path)
    return f"{status.st_ino}" if birth is None else f"{status.st_ino} of {birth}"


def sync_folder(disk: Disk, path: str) -> None:
    """Make changes of the name *path* in its folder durable.

    :raises OSError: as open(2) and fsync(2).
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    folder = disk.open(os.path.dirname(os.path.abspath(path)), flags)
    try:
        disk.fsync(folder)
    finally:
        disk.close(folder)
