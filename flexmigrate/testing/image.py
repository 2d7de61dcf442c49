"""An image on a machine's disk in memory. See :mod:`flexmigrate.testing.disk`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from flexmigrate.image import holes
from flexmigrate.image.disk import Disk
from flexmigrate.image.exact import Readable
from flexmigrate.image.extents import AllData, ToldExtents
from flexmigrate.image.file import Image
from flexmigrate.image.filesystems import Filesystem
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

    def may_wait(self, call: str) -> bool:
        """Whether *call* may not be made at once, because it could wait for the disk."""

    def begin_image_call(self, call: str, path: str) -> None:
        """Tell of a call that an image is about to make."""

    def touches(self, call: str, offset: int, length: int, data: bytes = b"") -> bool:
        """Tell of the bytes that a call is about; return whether a write is really done."""

    def forgetting(self, file: SimulatedFile) -> AbstractContextManager[None]:
        """Forget what isn't durable of *file* where the body fails, if such is the disk."""

    def unlock(self, file: SimulatedFile) -> None:
        """Let another have the image that is in *file*."""


class SimulatedImage(Image):
    """An image on a :class:`SimulatedDisk`: what it does to bytes, it does there."""

    __slots__ = ("_errors_seen", "_file", "_mount")

    def __init__(
        self, mount: Mounted, path: str, fd: int, file: SimulatedFile, *, read_only: bool
    ) -> None:
        # Not the image's own beginning, which looks at a descriptor of the kernel's.
        self.path = self.given_path = self._name = path
        self.read_only = read_only
        self.fd = fd
        self.size = len(file.seen)
        self.identity = (1, file.inode)
        self.is_block_device = False
        self.unlocked = None
        self.in_memory = False
        self.is_local = True
        self.pace = Pace()  # which writes wait is the disk's to say
        self.disk = mount
        self._mount = mount
        self._file = file
        # For flushes, and for writing back, which uses a descriptor of its own.
        self._errors_seen = {"fdatasync": file.opened(), "write back": file.opened()}
        self.trust = judge(mount.filesystem, mount.probed)
        told = ToldExtents(self._lseek, lambda: len(file.seen))
        self._extents = told if self.trust.holes else AllData()
        self._may_have_holes = self._extents.has_holes(self.size)

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
        view[:] = self._file.seen[offset : offset + len(view)]

    def read(self, offset: int, length: int) -> bytes:
        self._mount.begin_image_call("pread", self.path)
        self._mount.touches("pread", offset, length)
        return bytes(self._file.seen[offset : offset + length])

    def is_resident(self, offset: int, length: int) -> bool:
        return not self._mount.may_wait("is resident")

    def make_resident(self, offset: int, length: int) -> None:
        self._mount.begin_image_call("make resident", self.path)

    def write_back(self) -> None:
        self._begin_to_disk("write back")
        self._tell_error("write back")

    def _begin_to_disk(self, call: str) -> None:
        try:
            with self._mount.forgetting(self._file):
                self._mount.begin_image_call(call, self.path)
        except OSError:
            self._next_error(call)  # it is told by this
            raise

    def _tell_error(self, call: str) -> None:
        if number := self._next_error(call):
            raise OSError(number, os.strerror(number), self.path)

    def _next_error(self, call: str) -> int:
        number, self._errors_seen[call] = self._file.error_since(self._errors_seen[call])
        return number

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

    def flush(self) -> None:
        self._begin_to_disk("fdatasync")
        self._file.sync()
        self._tell_error("fdatasync")

    def close(self) -> None:
        if self.fd >= 0:
            self._mount.close(self.fd)
            self.fd = -1
            self._mount.unlock(self._file)
