"""Tries a filesystem, in a file of its own: whether lseek(2) tells what was just written from a
hole, and whether what fallocate(2) has zeroed reads as zeroes.

The file has no name where that can be done, and is gone before this returns. Nothing is waited for
to reach the disk: whether dirty pages are known is what is asked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from dataclasses import dataclass

from flexmigrate.image.kernel import calls as linux

# Longer than what any filesystem allocates at a time, so that the data lies within a hole.
_SIZE = 8 * 1024 * 1024
_AT = _SIZE // 2
_DATA = b"\x55" * linux.PAGE
_ZEROES = bytes(linux.PAGE)

# open(2): there are no files without a name here. (A kernel that doesn't know O_TMPFILE takes it
# for O_DIRECTORY, and says EISDIR.)
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EISDIR, errno.EINVAL, errno.ENOENT})


@dataclass(frozen=True, slots=True)
class Probed:
    """The result of a probe.

    :ivar knows_dirty: what is in the page cache, and not on the disk yet, is told to be data.
    :ivar zeroes: what fallocate(2) says to have zeroed reads as zeroes; or it says that it can't.
    """

    knows_dirty: bool
    zeroes: bool


def probe(folder: str, device: int) -> Probed:
    """Try it with a new file in *folder*.

    :param device: the number of the device that the file has to be on (stat(2)).
    :raises OSError: it can't be tried there: EXDEV if the folder is on another filesystem.
    """
    fd, path = _new_file(folder)
    try:
        if os.fstat(fd).st_dev != device:
            raise OSError(errno.EXDEV, "the folder is on another filesystem")
        os.ftruncate(fd, _SIZE)
        return Probed(_knows_dirty(fd), _zeroes(fd))
    finally:
        os.close(fd)
        if path is not None:
            os.unlink(path)


def _new_file(folder: str) -> tuple[int, str | None]:
    """Return a new file, and its name if it had to have one.

    Such a name stays until the end: not every filesystem can deal with a file that has lost it.
    """
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), None
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    path = os.path.join(folder, f".flexmigrate-probe-{secrets.token_hex(8)}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600), path


def _knows_dirty(fd: int) -> bool:
    """Tell whether a page that was written into a hole is data, and so is one that was written into
    storage that was only allocated.
    """
    _write(fd, _AT)
    places = [_AT]
    with contextlib.suppress(OSError):
        linux.fallocate(fd, linux.FALLOC_FL_KEEP_SIZE, 0, _AT // 2)
        _write(fd, _AT // 4)
        places.insert(0, _AT // 4)
    return all(_is_data(fd, at) for at in places) and _first_data(fd) <= places[0]


def _write(fd: int, offset: int) -> None:
    if os.pwrite(fd, _DATA, offset) != len(_DATA):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_data(fd: int, offset: int) -> bool:
    try:
        return (
            os.lseek(fd, offset, os.SEEK_DATA) == offset
            and os.lseek(fd, offset, os.SEEK_HOLE) >= offset + linux.PAGE
        )
    except OSError as error:
        return error.errno == errno.EINVAL  # nothing is told, so all is taken for data


def _first_data(fd: int) -> int:
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return 0 if error.errno == errno.EINVAL else _SIZE


def _zeroes(fd: int) -> bool:
    modes = (linux.FALLOC_FL_PUNCH_HOLE, linux.FALLOC_FL_ZERO_RANGE)
    return all(_zeroes_by(fd, mode | linux.FALLOC_FL_KEEP_SIZE) for mode in modes)


def _zeroes_by(fd: int, mode: int) -> bool:
    _write(fd, _AT)
    try:
        linux.fallocate(fd, mode, _AT, linux.PAGE)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        if error.errno in linux.FALLOCATE_UNSUPPORTED:
            return True
        raise
    return os.pread(fd, linux.PAGE, _AT) == _ZEROES
