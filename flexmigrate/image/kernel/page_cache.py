"""The kernel's page cache of an open image, as far as it is about what is on the disk.

What is written goes into the page cache, and to the disk when somebody waits for it or the kernel
finds time. Where that fails, Linux tells the error once for each time that the file was opened,
marks the pages as if they were on the disk, and keeps them until it needs their memory (fsync(2),
sync_file_range(2); the kernel's Documentation/core-api/errseq.rst). So what is read then may not be
what the disk has, and only an empty page cache shows that.

Here are the calls; what follows from their errors is ``durability``'s affair.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from flexmigrate.image.kernel import calls as linux

# sync_file_range(2): not for this kind of file, or not in this kernel. All else is about the disk.
_UNSUPPORTED = frozenset({errno.ESPIPE, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EBADF})

# A page may be kept for a moment by whoever looks at it: another process, or the kernel's own
# lists.
_TRIES = 6
_FIRST_PAUSE = 0.02

# Pages of a mapping that mincore(2) is asked about at a time; it answers with a byte for each.
_ASKED_AT_ONCE = 1 << 18

# A byte so far behind the end of every image that no page of it is ever written.
_FAR = 1 << 62


class PageCache:
    """The page cache of the open file *fd*, whose owner is somebody else.

    :param in_memory: there is no disk behind the file (tmpfs).
    """

    __slots__ = ("_fd", "_in_memory", "_is_block_device", "_second_fd")

    def __init__(self, fd: int, *, is_block_device: bool, in_memory: bool) -> None:
        self._fd = fd
        self._is_block_device = is_block_device
        self._in_memory = in_memory
        self._second_fd = -1

    def sync(self) -> None:
        """Wait until all that was written is on stable storage (fdatasync(2)).

        :raises OSError: some of it may never be.
        """
        os.fdatasync(self._fd)

    def write_back(self) -> None:
        """Have the disk begin to write what it hasn't been told to write yet, once it is done with
        what it was; does nothing where the kernel can't do that.

        :raises OSError: some of what was written may never be on the disk.
        """
        if not self._in_memory:
            self._call(0, 0, linux.SYNC_FILE_RANGE_WAIT_BEFORE | linux.SYNC_FILE_RANGE_WRITE)

    def look(self) -> None:
        """Find out whether writing back has failed since this was last asked, or ``write_back``
        was; or, at the first time, before, and nobody was told. Never waits for the disk.

        :raises OSError: it has.
        """
        if not self._in_memory:
            # Waits for pages that are being written of this range, where there are none.
            self._call(_FAR, 1, linux.SYNC_FILE_RANGE_WAIT_BEFORE)

    def _call(self, offset: int, length: int, flags: int) -> None:
        """Make a call whose error isn't taken away from ``sync``, which another thread may be in:
        the kernel tells it once for each descriptor that was opened, and this is another one.
        """
        if self._second_fd < 0:
            try:
                self._second_fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return  # where there is no /proc, ``sync`` has to find it all out
        try:
            linux.sync_file_range(self._second_fd, offset, length, flags)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise

    def empty(self) -> bool:
        """Let all of the file go from memory, so that whoever reads it then reads what the disk
        has; may take a while. Return whether nothing is left: False also where that isn't known.

        What can't be written to the disk any more is lost by this.
        """
        if self._in_memory:
            return True
        pause = _FIRST_PAUSE
        for tried in range(_TRIES):
            if tried:
                time.sleep(pause)
                pause *= 2
            with contextlib.suppress(OSError):
                self.sync()  # what isn't written stays
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if self._is_block_device and tried:
                # Not at once: it needs privileges, and very old kernels empty a RAM disk by it.
                with contextlib.suppress(OSError):
                    linux.flush_buffers(self._fd)
            if self._is_empty():
                return True
        return False

    def _is_empty(self) -> bool:
        try:
            pages, _ = linux.cached(self._fd, 0, 0)
        except OSError:
            return self._looks_empty()
        return not pages

    def _looks_empty(self) -> bool:
        """Find it out page by page, where the kernel doesn't count them. Where it could, its answer
        is better: mincore(2) calls the pages of a file that we couldn't write resident.
        """
        step = _ASKED_AT_ONCE * linux.PAGE
        try:
            size = os.lseek(self._fd, 0, os.SEEK_END)
            for offset in range(0, size, step):
                length = min(step, size - offset)
                address = linux.map_file(self._fd, length, offset)
                try:
                    pages = linux.pages_in_core(address, length)
                finally:
                    linux.unmap(address, length)
                if pages.strip(b"\0"):
                    return False
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close what was opened here."""
        if self._second_fd >= 0:
            fd, self._second_fd = self._second_fd, -1
            os.close(fd)
