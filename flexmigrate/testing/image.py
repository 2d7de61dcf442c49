"""An image on a machine's disk in memory. See :mod:`flexmigrate.testing.disk`."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from flexmigrate.image import holes
from flexmigrate.image.disk import Disk
from flexmigrate.image.durability import Durability
from flexmigrate.image.exact import Readable
from flexmigrate.image.extents import AllData, ToldExtents
from flexmigrate.image.file import Image
from flexmigrate.image.filesystems import Filesystem
from flexmigrate.image.flush_failure import (
    ATTRIBUTE,
    Boot,
    FlushFailure,
    Found,
    decode,
    encode,
)
from flexmigrate.image.pace import Pace
from flexmigrate.image.probe import Probed
from flexmigrate.image.trust import judge
from flexmigrate.image.zeroes import zero_runs
from flexmigrate.testing.file import SimulatedFile

BLOCK = 4096
"""What is a hole, or isn't, in bytes."""


class Mounted(Disk, Protocol):
    """The disk that an image is on, as one process has it.

    :ivar filesystem: the one that is on it.
    :ivar probed: what a probe finds there; or why none can be made.
    :ivar hides_dirty: what isn't synced yet is called a hole.
    """

    @property
    def filesystem(self) -> Filesystem: ...

    @property
    def probed(self) -> Probed | str: ...

    @property
    def hides_dirty(self) -> bool: ...

    @property
    def boot(self) -> Boot:
        """An id of the machine's current boot."""

    @property
    def keeps_cached(self) -> bool:
        """Whether the page cache can't be emptied."""

    def may_wait(self, call: str) -> bool:
        """Return whether *call* must not be made at once, because it could wait for the disk."""

    def begin_image_call(self, call: str, path: str) -> None:
        """Tell of a call that an image is about to make."""

    def touches(self, call: str, offset: int, length: int, data: bytes = b"") -> bool:
        """Tell of the bytes that a call is about; return whether a write is really done."""

    def forgetting(self, file: SimulatedFile) -> AbstractContextManager[None]:
        """Forget what isn't durable of *file* where the body fails, if such is the disk."""

    def unlock(self, file: SimulatedFile) -> None:
        """Let another have the image that is in *file*."""


class SimulatedCache:
    """The page cache of an image: see ``image.page_cache.PageCache``."""

    def __init__(self, mount: Mounted, path: str, file: SimulatedFile) -> None:
        self._mount = mount
        self._path = path
        self._file = file
        # For flushes, and for writing back, which uses a descriptor of its own.
        self._errors_seen = {"fdatasync": file.opened(), "write back": file.opened()}

    def sync(self) -> None:
        """Make the file durable; raise OSError for an error that was not reported yet."""
        self._begin("fdatasync")
        self._file.sync()
        self._tell_error("fdatasync")

    def write_back(self) -> None:
        """Write dirty pages; raise OSError for an error that was not reported yet."""
        self._begin("write back")
        self._tell_error("write back")

    def look(self) -> None:
        """Raise OSError if the kernel has failed to write something back."""
        self._mount.begin_image_call("look for errors", self._path)
        self._tell_error("write back")

    def empty(self) -> bool:
        """Drop the file's pages; return whether that was possible."""
        with contextlib.suppress(OSError):
            self.sync()
        self._mount.begin_image_call("empty cache", self._path)
        if self._mount.keeps_cached or self._file.unsynced:
            return False
        self._file.evict()
        return True

    def close(self) -> None:
        """Do nothing: no descriptor is open."""

    def _begin(self, call: str) -> None:
        try:
            with self._mount.forgetting(self._file):
                self._mount.begin_image_call(call, self._path)
        except OSError:
            self._next_error(call)  # it is told by this
            raise

    def _tell_error(self, call: str) -> None:
        if number := self._next_error(call):
            raise OSError(number, os.strerror(number), self._path)

    def _next_error(self, call: str) -> int:
        number, self._errors_seen[call] = self._file.error_since(self._errors_seen[call])
        return number


class SimulatedNote:
    """The note of a failed flush, in an extended attribute."""

    def __init__(self, mount: Mounted, path: str, file: SimulatedFile) -> None:
        self._mount = mount
        self._path = path
        self._file = file

    def load(self) -> Found | None:
        """Return the noted failure, if there is one."""
        data = self._file.attributes.get(ATTRIBUTE)
        return None if data is None else decode(data, self._file.inode, self._mount.boot)

    def keep(self, failure: FlushFailure) -> None:
        """Note a failure."""
        self._mount.begin_image_call("setxattr", self._path)
        boot = self._mount.boot
        self._file.attributes[ATTRIBUTE] = encode(failure, self._file.inode, boot)

    def remove(self) -> None:
        """Remove the note."""
        self._mount.begin_image_call("removexattr", self._path)
        self._file.attributes.pop(ATTRIBUTE, None)


class SimulatedImage(Image):
    """An image on a :class:`SimulatedDisk`: what it does to bytes, it does there."""

    __slots__ = ("_file", "_mount")

    def __init__(
        self, mount: Mounted, path: str, fd: int, file: SimulatedFile, *, read_only: bool
    ) -> None:
        # Not the image's own beginning, which looks at a descriptor of the kernel's.
        self.path = self.given_path = self._name = path
        self.read_only = read_only
        self.fd = fd
        self.size = len(file.seen)
        self.cut = None
        self.identity = (1, file.inode)
        self.is_block_device = False
        self.unlocked = None
        self.in_memory = False
        self.is_local = True
        self._folios = None
        self.pace = Pace()  # which writes wait is the disk's to say
        self.disk = mount
        self._mount = mount
        self._file = file
        self.trust = judge(mount.filesystem, mount.probed)
        told = ToldExtents(self._lseek, lambda: len(file.seen))
        self._extents = told if self.trust.holes else AllData()
        self._may_have_holes = self._extents.has_holes(self.size)
        self.durability = Durability(
            SimulatedCache(mount, path, file),
            SimulatedNote(mount, path, file),
            path,
            read_only=read_only,
        )

    def _lseek(self, position: int, whence: int) -> int:
        """Do what lseek(2) does, as far as the filesystem tells the truth."""
        size = len(self._file.seen)
        if position >= size:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        wanted = whence == os.SEEK_DATA
        while position < size:
            block = position // BLOCK * BLOCK
            if self._is_data(block) == wanted:
                return position
            position = block + BLOCK
        if wanted:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return size

    def _is_data(self, block: int) -> bool:
        file = self._file
        held = file.stable if self._mount.hides_dirty else file.seen
        return any(held[block : block + BLOCK])

    def _size_now(self) -> int:
        return len(self._file.seen)

    # Reading

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        if self._mount.may_wait("read"):
            return False
        self.read_into(view, offset)
        return True

    def read_into(self, view: memoryview, offset: int) -> None:
        self._mount.begin_image_call("pread", self.path)
        self._mount.touches("pread", offset, len(view))
        view[:] = self._bytes(offset, len(view))

    def read(self, offset: int, length: int) -> bytes:
        self._mount.begin_image_call("pread", self.path)
        self._mount.touches("pread", offset, length)
        return self._bytes(offset, length)

    def _bytes(self, offset: int, length: int) -> bytes:
        data = bytes(self._file.seen[offset : offset + length])
        if len(data) < length:
            raise OSError(errno.EIO, "the file is shorter by now", self.path)
        return data

    def is_resident(self, offset: int, length: int) -> bool:
        return not self._mount.may_wait("is resident")

    def make_resident(self, offset: int, length: int) -> None:
        self._mount.begin_image_call("make resident", self.path)

    def will_need(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._mount.begin_image_call("will need", self.path)

    def drop_cached(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._mount.begin_image_call("drop cached", self.path)
        for offset, length in ranges:
            self._file.evict(offset, length)

    # Writing

    def may_block_write(self, offset: int, length: int) -> bool:
        return self._mount.may_wait("write")

    def write(self, view: Readable, offset: int) -> None:
        self._mount.begin_image_call("pwrite", self.path)
        data = bytes(view)
        if not self._mount.touches("pwrite", offset, len(data), data):
            return
        runs = zero_runs(data, offset) if self._may_have_holes else []
        for start, end in holes.around(self._extents, len(data), offset, runs):
            self._file.write(offset + start, data[start:end])

    def zero(self, offset: int, length: int, *, may_punch: bool, fast_only: bool = False) -> None:
        self._mount.begin_image_call("fallocate", self.path)
        self._may_have_holes = self._may_have_holes or self._extents.may_come
        if self._mount.touches("fallocate", offset, length, bytes(length)):
            self._file.write(offset, bytes(length))

    def trim(self, offset: int, length: int) -> None:
        self._mount.begin_image_call("fallocate", self.path)
        self._may_have_holes = self._may_have_holes or self._extents.may_come
        if self._mount.touches("fallocate", offset, length, bytes(length)):
            self._file.write(offset, bytes(length))

    def empty_cache(self) -> None:
        self.durability.empty()

    def close(self) -> None:
        if self.fd >= 0:
            self._mount.close(self.fd)
            self.fd = -1
            self._mount.unlock(self._file)
