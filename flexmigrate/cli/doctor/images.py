"""Checks of an image, its records, and its filesystem."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from flexmigrate.cli.doctor.findings import Finding, ok, problem, warning
from flexmigrate.errors import ImageError, in_words
from flexmigrate.image import places
from flexmigrate.image.disk import SYSTEM
from flexmigrate.image.filesystems import filesystem_of
from flexmigrate.image.flush_failure import FileNote
from flexmigrate.image.kernel import calls as linux
from flexmigrate.image.opening import try_opening
from flexmigrate.image.trust import Trust, trust_in
from flexmigrate.migration.ownership import status as standings
from flexmigrate.migration.ownership.status import MayServe
from flexmigrate.wire.constants import SECTOR


def look(path: str, *, receives: bool = False, read_only: bool = False) -> Iterator[Finding]:
    """Check the image at *path*, which is to be served or overwritten by a migration."""
    yield _opening(path, read_only=read_only)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # it was reported
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            return
        is_device = stat.S_ISBLK(mode)
        yield _size(path, os.lseek(fd, 0, os.SEEK_END))
        yield _image_state(path, receives=receives)
        yield from _failed_flush(path, fd, is_device)
        if not read_only:
            yield _folder(path, receives=receives)
        yield _filesystem(path, fd, is_device, read_only=read_only)
        if not is_device and not read_only:
            yield _room(path, fd)
    finally:
        os.close(fd)


def _opening(path: str, *, read_only: bool) -> Finding:
    """Open the image as a server would, but without locks."""
    try:
        try_opening(path, read_only=read_only)
    except ImageError as error:
        return problem(path, _without(path, str(error)), _way_out(error.__cause__, path))
    return ok(path, "can be opened, and nobody else has locked it")


def _failed_flush(path: str, fd: int, is_device: bool) -> Iterator[Finding]:
    """Look for the note of a failed flush."""
    note = FileNote(fd, os.path.realpath(path), os.fstat(fd).st_ino, is_block_device=is_device)
    if (found := note.load()) is not None:
        yield warning(
            path,
            f"a flush of it failed: {found.failure.text}; what was written before that may be"
            " missing",
            "look at the disk below it, and at what is in the image; a server empties the page"
            " cache before it uses the image, or doesn't start",
        )


def _without(path: str, text: str) -> str:
    """Return an error's text without the image's name, which precedes it."""
    return text.replace(f"the image {path}", "the image", 1)


def _way_out(error: BaseException | None, path: str) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENOENT:
        return f"create it with the size that it is to have: truncate --size N {path}"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "let the user that runs the server read and write it, or use --read-only"
    if number is None:
        return (
            "end the program that uses it, make it writable or use --read-only, or name another one"
        )
    return "end the program that uses it, or name another one"


def _size(path: str, size: int) -> Finding:
    if not size:
        return problem(path, "it is empty", "give it the size that it is to have")
    if size % SECTOR:
        return warning(
            path,
            f"{size} bytes: the kernel's client and --oldstyle don't see the last {size % SECTOR}",
            f"for these, make it a multiple of {SECTOR} bytes, before it is served or received:"
            f" truncate --size %{SECTOR} {path} adds zeroes",
        )
    return ok(path, f"{size} bytes")


def _image_state(path: str, *, receives: bool) -> Finding:
    advice = f"flexmigrate whose {path}"
    try:
        image_state = standings.look(path)
        if receives:
            refusal = image_state.to_receive()
        else:
            serving, text = image_state.to_serve()
            refusal = None if serving is MayServe.SERVE else text
    except ImageError as error:
        return problem(path, str(error), advice)
    if refusal:
        return problem(path, refusal.removeprefix(f"{image_state.path} "), advice)
    if receives:
        return ok(path, "its records allow to receive into it")
    return ok(path, "its records allow to serve it")


def _folder(path: str, *, receives: bool) -> Finding:
    """Check the folder of its records (``image.places``)."""
    try:
        folder = os.path.dirname(places.beside(SYSTEM, os.path.realpath(path)))
    except (OSError, ImageError) as error:
        return problem(path, in_words(error), "the records of devices are kept there")
    while not os.path.exists(folder):  # the one of devices is made when it is needed
        folder = os.path.dirname(folder)
    if os.access(folder, os.W_OK | os.X_OK):
        if (kind := _kind(folder)) in ("devtmpfs", "tmpfs", "ramfs"):
            return warning(
                folder,
                f"a {kind}: records of the image are gone when the host is started again",
                "after that, look at the other side of a migration before this image is served:"
                " flexmigrate whose",
            )
        return ok(folder, "records of the image can be written")
    tell = problem if receives else warning
    return tell(
        folder,
        "can't be written to, and a migration keeps its records there: the image can be served, "
        "and not be given away",
        "let the user that runs the server write to it",
    )


def _filesystem(path: str, fd: int, is_device: bool, *, read_only: bool) -> Finding:
    if is_device:
        return ok(f"{path} on {filesystem_of(fd).name}", "a block device")
    trust = trust_in(fd, os.path.dirname(os.path.realpath(path)), read_only=read_only)
    about = f"{path} on {trust.filesystem}"
    lacking = list(_lacking(path, fd, trust))
    if lacking:
        return warning(
            about,
            f"without {', '.join(lacking)}",
            "ext4, XFS and btrfs have all of them; on others flexmigrate works, and does more by"
            " hand",
        )
    return ok(about, "fast reads, holes and their discovery")


def _lacking(path: str, fd: int, trust: Trust) -> Iterator[str]:
    """Yield the features that the image's filesystem lacks, with the consequences."""
    if not _can_read_without_waiting(fd):
        yield "reads that never wait (RWF_NOWAIT: each read goes to a thread)"
    if not trust.holes:
        yield f"holes that can be believed ({trust.doubt}: a migration reads and sends all of it)"
    if not trust.zeroes:
        yield "zeroes by fallocate that can be believed (they are written)"
        return
    try:
        # A file without a name, in the same place: the image isn't touched.
        probe = os.open(os.path.dirname(os.path.realpath(path)), os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError:
        return  # no such files there, or no right to make one: unknown
    try:
        os.write(probe, bytes(linux.PAGE))
        try:
            mode = linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE
            linux.fallocate(probe, mode, 0, linux.PAGE)
        except OSError:
            yield "punching holes (TRIM frees nothing, zeroes are written)"
    except OSError:
        return  # full: `_room` reports it
    finally:
        os.close(probe)


def _can_read_without_waiting(fd: int) -> bool:
    if linux.is_tmpfs(fd):
        return True  # no flag is needed: nothing there waits
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True  # the flag is known, the page isn't in memory
    except OSError:
        return False
    return True


def _kind(folder: str) -> str:
    """Return the type of a folder's filesystem."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return filesystem_of(fd).name
    finally:
        os.close(fd)


def _room(path: str, fd: int) -> Finding:
    status, filesystem = os.fstat(fd), os.fstatvfs(fd)
    missing = max(0, status.st_size - status.st_blocks * 512)
    free = filesystem.f_bavail * filesystem.f_frsize
    if missing > free:
        return warning(
            path,
            f"sparse: {missing} more bytes could be written, and {free} are free",
            "when none is free, clients are told that their writes have failed: free some, or see"
            " that it doesn't fill up",
        )
    return ok(path, f"room for all of it: {free} bytes are free, {missing} may be needed")
