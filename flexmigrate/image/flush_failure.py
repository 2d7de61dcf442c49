"""A flush of an image that failed, and the note of it that outlives the process.

What such a failure spoils is the kernel's page cache, which a process leaves behind when it ends.
So there has to be a note, for as long as the cache is there: until the machine is started anew, or
the cache was emptied. It goes with the file and not with its name; and it has to fit where the disk
is full, which is a common reason for a flush to fail.

* A file has it in an extended attribute, ``user.flexmigrate.flush``, which is kept in the inode.
* A block device, and a file whose filesystem has none, has it in the state folder (``places``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Protocol

from flexmigrate.image import disk as disks
from flexmigrate.image import places
from flexmigrate.image.disk import SYSTEM

ATTRIBUTE = "user.flexmigrate.flush"
"""Short, and its value is, too: so it fits into an inode of ext4, where nothing is to be
allocated."""

_BOOT_ID = "/proc/sys/kernel/random/boot_id"

_VERSION = 1
# Version, errno, inode, seconds since 1970, seconds since the machine was started, and its boot id.
_LAYOUT = struct.Struct(">BHQQI16s")

_UNKNOWN_BOOT = bytes(16)


@dataclass(frozen=True)
class Boot:
    """The time between two starts of a machine.

    :ivar id: the kernel's random one; zeroes where it doesn't tell.
    :ivar seconds: since the start.
    """

    id: bytes
    seconds: int

    @classmethod
    def current(cls) -> Boot:
        """Return what it is now."""
        seconds = int(time.clock_gettime(time.CLOCK_BOOTTIME))
        try:
            with open(_BOOT_ID, encoding="ascii") as file:
                return cls(bytes.fromhex(file.read().strip().replace("-", "")), seconds)
        except (OSError, ValueError):
            return cls(_UNKNOWN_BOOT, seconds)

    def may_be(self, earlier: Boot) -> bool:
        """Tell whether the machine has been running since *earlier*; True where that isn't
        known.
        """
        if _UNKNOWN_BOOT not in (self.id, earlier.id):
            return self.id == earlier.id
        return self.seconds >= earlier.seconds


@dataclass(frozen=True)
class FlushFailure:
    """A flush that failed, or the writing back of what a flush would have waited for.

    :ivar number: the kernel's, of the error.
    :ivar at: seconds since 1970, for people.
    """

    number: int
    at: int

    @property
    def text(self) -> str:
        """When it was, and why; for people."""
        when = datetime.fromtimestamp(self.at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        name = errno.errorcode.get(self.number, f"error {self.number}")
        return f"{when} {name}: {os.strerror(self.number)}"


@dataclass(frozen=True)
class Found:
    """A note, as it was found.

    :ivar is_over: the machine was started anew since: its page cache is another.
    """

    failure: FlushFailure
    is_over: bool


class Note(Protocol):
    """The note of a failed flush of one image, in a file."""

    def load(self) -> Found | None:
        """Return what is noted; None if nothing is, or nothing of this file."""

    def keep(self, failure: FlushFailure) -> None:
        """Note *failure*; waits for the disk.

        :raises OSError: it can't be noted anywhere.
        """

    def remove(self) -> None:
        """Let there be no note.

        :raises OSError: it stays.
        """


class FileNote:
    """The note of an open file or block device; see the module.

    :param fd: of the file, whose owner is somebody else.
    :param path: absolute and without links.
    :param inode: what tells the file from a copy of it that has its attributes.
    """

    def __init__(self, fd: int, path: str, inode: int, *, is_block_device: bool) -> None:
        self._fd = fd
        self._path = path
        self._inode = inode
        self._has_attributes = not is_block_device

    def load(self) -> Found | None:
        """See `Note`."""
        data = None
        with contextlib.suppress(OSError):
            if self._has_attributes:
                data = os.getxattr(self._fd, ATTRIBUTE)
        with contextlib.suppress(OSError):
            if data is None:
                data = disks.read(SYSTEM, self._place(), _LAYOUT.size)
        return None if data is None else decode(data, self._inode, Boot.current())

    def keep(self, failure: FlushFailure) -> None:
        """See `Note`."""
        data = encode(failure, self._inode, Boot.current())
        if self._has_attributes:
            with contextlib.suppress(OSError):
                os.setxattr(self._fd, ATTRIBUTE, data)
                return
        place = self._place()
        places.make_folder(place)
        disks.replace(SYSTEM, place, data)

    def remove(self) -> None:
        """See `Note`."""
        if self._has_attributes:
            try:
                os.removexattr(self._fd, ATTRIBUTE)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                    raise
        place = self._place()
        if disks.exists(SYSTEM, place):
            disks.remove(SYSTEM, place)

    def _place(self) -> str:
        return places.aside(self._path, os.fstat(self._fd)) + ".flush"


def encode(failure: FlushFailure, inode: int, boot: Boot) -> bytes:
    """Return a note, as it is kept."""
    return _LAYOUT.pack(_VERSION, failure.number, inode, failure.at, boot.seconds, boot.id)


def decode(data: bytes, inode: int, now: Boot) -> Found | None:
    """Return what the note *data* says; None if it is another file's, or no note that is known."""
    try:
        version, number, noted, at, seconds, boot_id = _LAYOUT.unpack(data)
    except struct.error:
        return None
    if version != _VERSION or noted != inode:
        return None
    is_over = not now.may_be(Boot(boot_id, seconds))
    return Found(FlushFailure(number, at), is_over)
