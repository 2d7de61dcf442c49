"""An image on a machine's disk in memory. See :mod:`flexmigrate.testing.disk`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from flexmigrate.image.disk import Disk
from flexmigrate.image.exact import Readable
from flexmigrate.image.extents import Extent
from flexmigrate.image.file import SECTOR, Image
from flexmigrate.testing.file import SimulatedFile

BLOCK = 4096
"""What is a hole, or isn't, in bytes."""

_ZEROES = bytes(BLOCK)


class Mounted(Disk, Protocol):
    """The disk that an image is on, as one process has it."""

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
        self.file_size = len(file.seen)
        self.size = self.file_size // SECTOR * SECTOR
        self.identity = (1, file.inode)
        self.is_block_device = False
        self.in_memory = False
        self.disk = mount
        self._mount = mount
        self._file = file
        self._may_have_holes = False
        # For flushes, and for writing back, which uses a descriptor of its own.
        self._errors_seen = {"fdatasync": file.opened(), "write back": file.opened()}

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

    def is_hole(self, view: Readable, offset: int) -> bool:
        return False

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

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        while offset < end:
            extent = self.extent_at(offset)
            yield Extent(offset, min(extent.end, end) - offset, extent.data)
            offset = extent.end

    def extent_at(self, offset: int) -> Extent:
        data = self._is_data(offset)
        end = offset // BLOCK * BLOCK + BLOCK
        while end < self.size and self._is_data(end) == data:
            end += BLOCK
        return Extent(offset, min(end, self.size) - offset, data)

    def _is_data(self, offset: int) -> bool:
        at = offset // BLOCK * BLOCK
        return self._file.seen[at : at + BLOCK] != _ZEROES

    # Writing

    def may_block_write(self, offset: int, length: int) -> bool:
        return self._mount.may_wait("write")

    def write(self, view: Readable, offset: int) -> None:
        self._mount.begin_image_call("pwrite", self.path)
        if self._mount.touches("pwrite", offset, len(view), bytes(view)):
            self._file.write(offset, bytes(view))

    def zero(self, offset: int, length: int, *, may_punch: bool, fast_only: bool = False) -> None:
        self._mount.begin_image_call("fallocate", self.path)
        if self._mount.touches("fallocate", offset, length, bytes(length)):
            self._file.write(offset, bytes(length))

    def trim(self, offset: int, length: int) -> None:
        self._mount.begin_image_call("fallocate", self.path)
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
