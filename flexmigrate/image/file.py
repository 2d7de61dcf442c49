"""An image file: the only owner of its descriptor, with all access to its bytes.

Everything here is synchronous and takes offsets that were checked before. Three methods tell
which calls may be made on the reactor's thread: ``try_read_into`` never waits for the disk,
``may_block_write`` says whether a write would, ``is_resident`` whether a ``sendfile`` would. All
else belongs into a thread (``background.py``). Errors are ``OSError`` with the kernel's number, and
go to the caller.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator

# Imported by name: each attribute lookup costs time in the path of a request.
from os import RWF_NOWAIT, preadv, pwrite
from time import perf_counter
from typing import Protocol

from zope.interface import implementer

from flexmigrate.errors import ImageError
from flexmigrate.image import holes, locks
from flexmigrate.image.disk import SYSTEM, Disk, identity, sync_folder
from flexmigrate.image.durability import Durability
from flexmigrate.image.exact import Readable, read_exact, write_exact
from flexmigrate.image.extents import Extent, merge
from flexmigrate.image.faults import located, locating
from flexmigrate.image.filesystems import filesystem_of
from flexmigrate.image.flush_failure import FileNote, FlushFailure
from flexmigrate.image.interfaces import IBlockDevice
from flexmigrate.image.kernel import calls as linux
from flexmigrate.image.kernel.large_folios import GRANULE, SHORT, WITHIN, Folios
from flexmigrate.image.kernel.page_cache import PageCache
from flexmigrate.image.kernel.residency import Residency
from flexmigrate.image.opening import Opened, open_image
from flexmigrate.image.pace import Pace
from flexmigrate.image.zeroes import ZEROES, zero_runs

# How much is read at once only to have it in memory: long enough for a disk to be read at full
# speed, short enough to stay in the processor's cache, since nobody looks at it.
SCRATCH = 256 * 1024


class Opener(Protocol):
    """The type of :meth:`Image.open`, or its replacement in a test."""

    def __call__(self, path: str, *, read_only: bool = ...) -> Image:
        """Open an image, as :meth:`Image.open`."""


_WITHIN_PAGE = linux.PAGE - 1


@implementer(IBlockDevice)
class Image:
    """An open and locked image; made by :meth:`open`, ended by :meth:`close`.

    :ivar path: the path as it was given; for people.
    :ivar given_path: the absolute path, with its links, which may lead elsewhere one day.
    :ivar fd: the descriptor, for ``sendfile``; its owner is this object.
    :ivar size: the bytes of the file or device when it was opened, or last found to have grown.
    :ivar cut: how ``size_fault`` has once found it shorter than that; None if it hasn't. Whoever
        writes behind its end lengthens it again, and what it had there is gone all the same.
    :ivar identity: (device, inode).
    :ivar unlocked: why QEMU, or another server that uses the same bytes under another name, isn't
        seen there, and doesn't see us; None if it is and does.
    :ivar disk: where it and what is kept beside it have their names.
    :ivar is_local: whether the page cache is this kernel's alone, with no daemon or server behind
        it.
    :ivar pace: the choice of the thread for its writes.
    :ivar durability: the record of what may not be on the disk.
    :ivar in_memory: whether there is no disk behind it: no read waits, and all is resident.
    :ivar trust: the trust in its filesystem.
    """

    __slots__ = (
        "_extents",
        "_folios",
        "_granule",
        "_may_have_holes",
        "_name",
        "_range_locks",
        "_read_flags",
        "_residency",
        "cut",
        "disk",
        "durability",
        "fd",
        "given_path",
        "identity",
        "in_memory",
        "is_block_device",
        "is_local",
        "pace",
        "path",
        "read_only",
        "size",
        "trust",
        "unlocked",
    )

    def __init__(self, path: str, opened: Opened, *, read_only: bool) -> None:
        self.path = path
        self.disk: Disk = SYSTEM
        # A daemon changes its directory, and links change: what is unlinked one day is this file.
        self.given_path = os.path.abspath(path)
        self._name = os.path.realpath(path)
        self.read_only = read_only
        self.fd = opened.fd
        self.size = opened.size
        self.cut: str | None = None
        self.identity = opened.identity
        self._range_locks = opened.range_locks
        self.unlocked = opened.range_locks.unlocked
        self.is_block_device = opened.is_block_device
        self._granule = opened.granule
        # A file on tmpfs has no disk to wait for (but for swap), and refuses RWF_NOWAIT.
        self.in_memory = linux.is_tmpfs(opened.fd) and not opened.is_block_device
        self._read_flags = 0 if self.in_memory else RWF_NOWAIT
        # A filesystem whose daemon or server may be asked at any time, for whatever it likes to be.
        self.is_local = opened.is_block_device or filesystem_of(opened.fd).is_local
        self.pace = Pace(is_slow=not self.is_local)
        # Of a file that it couldn't write, mincore(2) tells a process that all is resident: as good
        # as not knowing, and a size of 0 says that.
        may_know = opened.writable and self.is_local
        self._residency = Residency(opened.fd, self.size if may_know else 0)
        # Nobody has measured yet whether it is worth while with a block device, too.
        self._folios = (
            None if read_only or opened.is_block_device else Folios.of(opened.fd, self.size)
        )
        self.trust = opened.trust
        self._extents = opened.trust.extents(opened.fd)
        self._may_have_holes = self._extents.has_holes(self.size)
        self.durability = Durability(
            PageCache(
                opened.fd,
                is_block_device=opened.is_block_device,
                in_memory=self.in_memory,
            ),
            FileNote(
                opened.fd,
                self._name,
                opened.identity[1],
                is_block_device=opened.is_block_device,
            ),
            path,
            read_only=read_only,
        )

    @classmethod
    def open(cls, path: str, *, read_only: bool = False) -> Image:
        """Open the image at *path* and lock it: for itself alone, or among readers if *read_only*.

        :raises ImageError: it can't be opened, is no file or block device, or is in use by another
            server. The text names the path and the cause.
        """
        return cls(path, open_image(path, read_only=read_only), read_only=read_only)

    # Reading

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        """Fill *view* from *offset* if that can be done without waiting; else return False.

        After False the view holds anything, and ``read_into`` in a thread gives the bytes or the
        error. False it is wherever the kernel doesn't say (preadv2(2), ``RWF_NOWAIT``).
        """
        try:
            return preadv(self.fd, (view,), offset, self._read_flags) == len(view)
        except OSError:
            return False

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill *view* from *offset*; may wait for the disk.

        :raises OSError: ``EIO`` also when the file was truncated under us.
        """
        with locating("reading", len(view), offset, self.path):
            read_exact(self.fd, view, offset)

    def read(self, offset: int, length: int) -> bytes:
        """Return *length* bytes from *offset*; may wait for the disk. Raises as ``read_into``."""
        with locating("reading", length, offset, self.path):
            data = os.pread(self.fd, length, offset)
            if len(data) == length:
                return data
            rest = bytearray(length - len(data))
            read_exact(self.fd, memoryview(rest), offset + len(data))
            return data + rest

    @property
    def may_have_holes(self) -> bool:
        """Whether parts may be told to be holes; False is certain, but for holes that others
        make.
        """
        return self._may_have_holes

    def is_hole(self, view: Readable, offset: int) -> bool:
        """Return whether *view*, which was read at *offset*, is zeroes because it lies in a hole.

        Costs a comparison where it isn't zeroes, and a system call where it is. False where that
        fails: the zeroes were read, whatever has become of the file since.
        """
        if not self._may_have_holes or not ZEROES.startswith(view):
            return False
        length = len(memoryview(view))
        try:
            return next(self.extents(offset, length)) == Extent(offset, length, False)
        except OSError:
            return False

    def is_resident(self, offset: int, length: int) -> bool:
        """Return whether all of a range is in memory now, so that sending it will not wait.

        False if that can't be known.
        """
        return self.in_memory or self._residency.covers(offset, length)

    def make_resident(self, offset: int, length: int) -> None:
        """Bring a range into memory by reading it; waits for the disk. Raises as ``read_into``."""
        scratch = memoryview(bytearray(min(length, SCRATCH)))
        end = offset + length
        while offset < end:
            piece = scratch[: end - offset]
            self.read_into(piece, offset)
            offset += len(piece)
        self._forget_folios(end - length, length)

    def will_need(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Advise the kernel to read some (offset, length) ahead; doesn't wait.

        Not holes: memory would be filled with their zeroes.
        """
        for offset, length in ranges:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_WILLNEED)

    def drop_cached(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Advise the kernel to drop some (offset, length) from the page cache, except for data that
        isn't on the disk yet.
        """
        for offset, length in ranges:
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.fd, offset, length, os.POSIX_FADV_DONTNEED)
            self._forget_folios(offset, length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield the extents of a range: ascending, merged, clipped, looked up as they are asked
        for.

        A device, and a filesystem that doesn't say or isn't trusted to, is all data.

        :raises OSError: ``EIO`` (in the midst of it) when the file was truncated under us.
        """
        with locating("looking for holes in", length, offset, self.path):
            yield from merge(self._extents.walk(offset, offset + length))

    def is_all_hole(self, offset: int, length: int) -> bool:
        """Return whether a range is nothing but a hole. Raises as ``extents``."""
        return next(self.extents(offset, length)) == Extent(offset, length, data=False)

    def next_data(self, offset: int, end: int) -> int:
        """Return where data begins, from *offset* on; *end* if that comes first. Raises as
        ``extents``.
        """
        with locating("looking for data in", end - offset, offset, self.path):
            return self._extents.next_data(offset, end)

    def extent_at(self, offset: int) -> Extent:
        """Return what *offset* lies in, from there to its end, however far that is.

        :param offset: less than ``size``.
        :raises OSError: as ``extents``.
        """
        with locating("looking for holes in", self.size - offset, offset, self.path):
            return next(self._extents.walk(offset, self.size))

    # Writing

    def may_block_write(self, offset: int, length: int) -> bool:
        """Return whether writing a range may have to wait: because writes to this image do now (see
        ``Pace``), or because the pages at its edges have to be read from the disk first.

        A whole page is never read before it is overwritten; a part of one is, unless it is in
        memory.
        """
        end = offset + length
        if not (offset | end) & _WITHIN_PAGE or self.in_memory:
            return self.pace.waits
        if self.pace.waits:
            return True
        if offset & _WITHIN_PAGE and not self._is_byte_ready(offset):
            return True
        return end & _WITHIN_PAGE != 0 and not self._is_byte_ready(end - 1)

    def _is_byte_ready(self, offset: int) -> bool:
        return self.try_read_into(memoryview(bytearray(1)), offset)

    def write(self, view: Readable, offset: int) -> None:
        """Write all of *view* at *offset*; zeroes that would go into a hole leave it a hole.

        Looking for zeroes is left out while the image has no holes.

        :raises OSError: as pwrite(2): ``ENOSPC``, ``EIO`` … Some of it may have been written by
            then.
        """
        try:
            if self._may_have_holes and (runs := zero_runs(view, offset)):
                holes.write_around(self.fd, self._extents, view, offset, runs)
                return
            folios = self._folios
            if folios is None:
                written = pwrite(self.fd, view, offset)
            elif len(view) > SHORT:
                folios.forget(offset, len(view))
                written = pwrite(self.fd, view, offset)
            elif folios.marks[offset >> GRANULE & WITHIN]:
                written = pwrite(self.fd, view, offset)
            else:
                written = folios.write(view, offset)
            if written != len(view):
                # Once more from the start: it is the same bytes, and rare.
                write_exact(self.fd, view, offset)
        except OSError as error:
            raise located(error, "writing", len(view), offset, self.path) from error

    def write_in_thread(self, view: Readable, offset: int) -> None:
        """Write like ``write``, in a thread, and measure the time."""
        began = perf_counter()
        try:
            self.write(view, offset)
        finally:
            self.pace.waited(perf_counter() - began)

    def zero(self, offset: int, length: int, *, may_punch: bool, fast_only: bool = False) -> None:
        """Make a range read as zeroes, exactly, without writing them if possible.

        :param may_punch: whether the storage may be given back (a hole); else it stays, or is
            allocated.
        :raises OSError: ``ENOTSUP`` if *fast_only* and only writing would do; else as fallocate(2)
            and pwrite(2). Some of it may have been done by then.
        """
        self._may_have_holes = self._may_have_holes or self._extents.may_come
        self._forget_folios(offset, length)
        with locating("zeroing", length, offset, self.path):
            holes.zero(
                self.fd,
                offset,
                length,
                granule=self._granule,
                may_punch=may_punch,
                fast_only=fast_only,
                is_trusted=self.trust.zeroes,
            )

    def trim(self, offset: int, length: int) -> None:
        """Give back the storage of a range, if that is supported.

        What the range holds afterwards is undefined. (A file then has zeroes there.)

        :raises OSError: as fallocate(2), but not because it isn't supported.
        """
        self._may_have_holes = self._may_have_holes or self._extents.may_come
        self._forget_folios(offset, length)
        with locating("trimming", length, offset, self.path):
            holes.trim(self.fd, offset, length, granule=self._granule)

    def _forget_folios(self, offset: int, length: int) -> None:
        """Forget the large folios that short writes left in the page cache of a range."""
        if self._folios is not None:
            self._folios.forget(offset, length)

    def flush(self) -> None:
        """Wait until all that was written, zeroed or trimmed is on stable storage (fdatasync(2)).

        :raises OSError: ``EIO``, ``ENOSPC`` …; once one has failed, each does: see ``Durability``.
        """
        self.durability.flush()

    def write_back(self) -> None:
        """Start to write the image's dirty pages to the disk, once it
        has finished what it was told before.

        So at any time no more is being written than was changed between two calls, and a flush
        waits for that and for what was changed since. Nothing is durable by it. One call at a time.

        :raises OSError: as ``flush``.
        """
        self.durability.write_back()

    @property
    def flush_failure(self) -> FlushFailure | None:
        """The failed flush since which reads may differ from the disk; None if there is none."""
        return self.durability.failure

    def empty_cache(self) -> None:
        """Empty the page cache, so that reads return the disk's content.

        :raises ImageError: it can't be emptied.
        """
        self.durability.empty()
        self._forget_folios(0, self.size)

    # The end

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self.fd < 0

    @property
    def real_path(self) -> str:
        """Return the absolute path, without links, that the file had when it was opened."""
        return self._name

    def name_fault(self) -> str | None:
        """Return the reason why the image's name doesn't lead to it any more, in words;
        None where it does. May wait for the disk.

        A name that can't be looked up now (a network filesystem's ``ESTALE``, say) doesn't lead to
        it, either.
        """
        return self._leads_elsewhere(self._name)

    def given_name_fault(self) -> str | None:
        """Return the same for the path as it was given, whose links may lead elsewhere now."""
        fault = self.name_fault()
        if fault is None and self.given_path != self._name:
            fault = self._leads_elsewhere(self.given_path)
        return fault

    def _leads_elsewhere(self, name: str) -> str | None:
        try:
            ours = self.disk.fstat(self.fd)
            there = self._found(name)
        except OSError as error:
            return f"{name} can't be found any more: {error.strerror}"
        if there is None:
            return f"{name} is not there any more: it was {self._fate(ours)}"
        if stat.S_ISBLK(ours.st_mode):
            # The node of a device may be made anew; the device has its number.
            is_same = stat.S_ISBLK(there.st_mode) and there.st_rdev == ours.st_rdev
        else:
            is_same = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
        if is_same:
            return None
        return f"{name} leads to another file by now: the image was {self._fate(ours)}"

    def _found(self, name: str) -> os.stat_result | None:
        try:
            return self.disk.stat(name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    @staticmethod
    def _fate(status: os.stat_result) -> str:
        return "renamed, or a folder above it" if status.st_nlink else "removed"

    def other_readers(self) -> str | None:
        """Return who else reads the image, in words; None if nobody has a lock for it. May wait:
        a network filesystem asks its server.
        """
        return locks.read_by_others(self.fd) if self.read_only else None  # else nobody may

    @property
    def other_names(self) -> int:
        """Return the number of the file's other names: an unlinked file keeps its bytes under
        those.

        :raises OSError: as fstat(2).
        """
        return max(0, self.disk.fstat(self.fd).st_nlink - 1)

    def size_fault(self) -> str | None:
        """Return the reason why the file has another size than when it was opened; None if it
        hasn't.

        Never waits: on a network filesystem it is the size that this host knows of.
        """
        size = self._size_now()
        if size == self.size:
            return None
        fault = f"somebody else has changed the size of {self._name}: {size} bytes, not {self.size}"
        if size < self.size and self.cut is None:
            self.cut = fault
        return fault

    def _size_now(self) -> int:
        return linux.device_size(self.fd) if self.is_block_device else linux.known_size(self.fd)

    def grow(self) -> bool:
        """Adopt the size that somebody else has given the file or device, if it is larger; return
        whether it is. On the reactor's thread; clients that were told the old size keep to it.
        """
        size = self._size_now()
        if size <= self.size:
            return False
        self.size = size
        # What threads write by the old marks isn't harmed: these are for speed alone.
        self._folios = None if self._folios is None else Folios.of(self.fd, size)
        self._may_have_holes = self._may_have_holes or self._extents.may_come
        return True

    def unlink(self) -> None:
        """Remove the file's name, durably. The image stays open, and keeps its bytes until closed.

        Links in the path were followed when it was opened: it is the image that goes. That it has
        no name any more is not an error. A hard link elsewhere is left alone, and keeps the bytes.

        :raises ImageError: the name leads to another file by now, the image was moved, or is a
            device: nothing was done.
        :raises OSError: as unlink(2); or as fsync(2), and then the name is gone, but may come back
            if the machine crashes.
        """
        if self.is_block_device:
            raise ImageError(f"the image {self.path} is a block device and can't be unlinked")
        try:
            if identity(self.disk, self._name) != self.identity:
                raise ImageError(f"{self._name} is not the image any more: not unlinked")
            self.disk.unlink(self._name)
        except FileNotFoundError:
            if self.disk.fstat(self.fd).st_nlink:
                raise ImageError(f"the image {self._name} was moved: not unlinked") from None
        sync_folder(self.disk, self._name)

    def close(self) -> None:
        """Close and unlock the image; nothing may be under way in a thread. Twice is allowed."""
        if self.fd >= 0:
            self.durability.close()
            self._residency.close()
            if self._folios is not None:
                self._folios.close()
                self._folios = None
            fd, self.fd = self.fd, -1
            os.close(fd)
            self._range_locks.close()
