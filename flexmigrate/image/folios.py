"""Large folios: why a short write may take ten times as long as it has to, and what is done about
it.

The page cache keeps a file in folios of one page or of many (Linux 6.16 on ext4: up to 2 MiB), as
they were read ahead or written. For each write, ext4 goes through all blocks of the folio: with
512 KiB, a write of 4 KiB takes some 20 us instead of 2. So before the first short write goes into a
stretch of the image, its folio is split into pages.

Nothing but madvise(2) does that to a file's: where a part of a folio is told to be cold, it is
split. The page has to be mapped for that; the mapping is never touched, since a page that is gone
would be a SIGBUS. The kernel splits no folio that waits to be written back, and nobody says how
large one is: of such a one, the time that a write takes tells. It is tried again with each write,
until one finds it clean.

Long writes and reads are quicker with large folios, by a third and by a tenth. So only what short
writes go to is split.
"""

from __future__ import annotations

import contextlib
import mmap
from os import pwrite
from time import perf_counter

from flexmigrate.image import linux
from flexmigrate.image.exact import Readable

GRANULE = 16
"""For so many bits of an offset, 64 KiB, there is one mark. To split less is not worth while."""

WITHIN = (1 << 24) - 1
"""There are no more marks than that, 16 MiB of them, which take memory once they are made: beyond
1 TiB, two places share one.
"""

SHORT = 32 * 1024
"""Bytes of a write. Of longer ones, copying takes most of the time."""

# Seconds that a short write takes at least where the folio is large, and that it takes to split
# one. Where it is a page, both take 2 to 3 us.
SLOW = 4e-6
SPLITTING = 10e-6

# Of so many tries, so many at least have to find something to split. (Of the 32 marks that a folio
# of 2 MiB has, one does.) Else it is left off for so many, doubled each time, up to the last one.
TRIES = 256
WORTH_WHILE = 4
FIRST_REST = 4096
LONGEST_REST = 1 << 20


class Folios:
    """Those of the file *fd*, of *size* bytes.

    :ivar marks: by the offset's bits from `GRANULE` on, as far as `WITHIN`: not 0 where a short
        write needs no care any more. Whoever writes looks there first.
    """

    __slots__ = ("_fd", "_found", "_next_rest", "_rest", "_tries", "marks")

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        # Anonymous memory is there once something is put into it; a bytearray's is at once.
        self.marks = mmap.mmap(-1, min(size >> GRANULE, WITHIN) + 1)
        self._tries = self._found = 0
        self._rest = 0
        self._next_rest = FIRST_REST

    @classmethod
    def of(cls, fd: int, size: int) -> Folios | None:
        """Return them, or None where the kernel doesn't say what is in its page cache, or where
        folios of all sizes are alike (on other filesystems than ext4).
        """
        try:
            linux.cached(fd, 0, linux.PAGE)
        except OSError:
            return None
        return cls(fd, size) if linux.is_ext4(fd) else None

    def write(self, view: Readable, offset: int) -> int:
        """Write as pwrite(2) does, at most `SHORT` bytes, where there is no mark: split the folio
        before, or find out whether that has to be done another time.

        :raises OSError: as pwrite(2)
        """
        place = offset >> GRANULE & WITHIN
        page = offset & -linux.PAGE
        try:
            cached, unwritten = linux.cached(self._fd, page, linux.PAGE)
        except OSError:  # all this is for speed alone
            cached, unwritten = 1, 0
        if cached and not unwritten:
            self.marks[place] = 1
            self._split(page)
            return pwrite(self._fd, view, offset)
        begin = perf_counter()
        written = pwrite(self._fd, view, offset)
        if cached and perf_counter() - begin < SLOW:
            self.marks[place] = 1
        return written

    def forget(self, offset: int, length: int) -> None:
        """Something else than short writes has brought this range into the page cache."""
        first = offset >> GRANULE & WITHIN
        last = offset + length - 1 >> GRANULE & WITHIN
        if first <= last:
            self.marks[first : last + 1] = bytes(last + 1 - first)

    def _split(self, page: int) -> None:
        if self._rest:
            self._rest -= 1
            return
        with contextlib.suppress(OSError):
            # Of a larger mapping, the kernel would fill in what lies around the page, too.
            address = linux.map_file(self._fd, linux.PAGE, page)
            try:
                linux.populate(address, linux.PAGE)
                begin = perf_counter()
                linux.make_cold(address, linux.PAGE)
                self._learn(perf_counter() - begin > SPLITTING)
            finally:
                linux.unmap(address, linux.PAGE)

    def _learn(self, was_split: bool) -> None:
        self._tries += 1
        self._found += was_split
        if self._tries == TRIES:
            if self._found >= WORTH_WHILE:
                self._next_rest = FIRST_REST
            else:
                self._rest = self._next_rest
                self._next_rest = min(self._next_rest * 2, LONGEST_REST)
            self._tries = self._found = 0

    def close(self) -> None:
        """Give back the memory of the marks."""
        self.marks.close()
