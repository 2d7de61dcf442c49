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
until one finds it clean. Where the kernel doesn't say that either (before Linux 6.5, or to a
service whose system calls a systemd filters that doesn't know this one), all are tried.

Long writes and reads are quicker with large folios, by a third and by a tenth. So only what short
writes go to is split.
"""

from __future__ import annotations

import mmap
from os import pwrite
from time import perf_counter

from flexmigrate.image.exact import Readable
from flexmigrate.image.kernel import calls as linux

GRANULE = 16
"""For so many bits of an offset, 64 KiB, there is one mark. To split less is not worth while."""

WITHIN = (1 << 24) - 1
"""There are no more marks than that, 16 MiB of them, which take memory once they are made: beyond
1 TiB, two places share one.
"""

SHORT = 32 * 1024
"""Bytes of a write. Of longer ones, copying takes most of the time."""

# Seconds that a short write takes at least for each of its pages where the folio is large, and that
# it takes to split one. Where it is a page, both take 2 to 3 us.
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
        # Such memory is there once something is put into it; a bytearray's is at once.
        marks = min(size >> GRANULE, WITHIN) + 1
        self.marks = mmap.mmap(-1, marks, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._tries = self._found = 0
        self._rest = 0
        self._next_rest = FIRST_REST

    @classmethod
    def of(cls, fd: int, size: int) -> Folios | None:
        """Return them; None where folios of all sizes are alike (on other filesystems than ext4),
        or where there is no memory for the marks: all this is for speed alone.
        """
        try:
            return cls(fd, size) if linux.is_ext4(fd) else None
        except OSError:
            return None

    def write(self, view: Readable, offset: int) -> int:
        """Write as pwrite(2) does, at most `SHORT` bytes, where there is no mark: split the folio
        before, or find out whether that has to be done another time.

        :raises OSError: as pwrite(2)
        """
        place = offset >> GRANULE & WITHIN
        page = offset & -linux.PAGE
        try:
            cached, unwritten = linux.cached(self._fd, page, linux.PAGE)
        except OSError:
            cached, unwritten = 1, None  # it may be clean, and it may not
        # What isn't there gets a folio of its own, and tells nothing of its neighbours'.
        is_there = cached > 0 and (bool(unwritten) or self._split(page))
        begin = perf_counter()
        written = pwrite(self._fd, view, offset)
        if is_there and (unwritten == 0 or perf_counter() - begin < _slow(written)):
            self.marks[place] = 1
        return written

    def forget(self, offset: int, length: int) -> None:
        """Something else than short writes is about to bring this range into the page cache, or was
        it.
        """
        if length <= 0:
            return
        first = offset >> GRANULE & WITHIN
        end = (offset + length - 1 >> GRANULE & WITHIN) + 1
        marks = self.marks
        if first >= end or length > WITHIN << GRANULE:
            first, end = 0, len(marks)  # it goes beyond the last mark, and on from the first
        # Memory of which nobody has made a mark stays unmade: to look there makes none.
        if end - first < linux.PAGE and marks.find(b"\1", first, end) < 0:
            return  # as it is for most long writes, and soon found out
        head, tail = min(-(-first // linux.PAGE) * linux.PAGE, end), end // linux.PAGE * linux.PAGE
        if head < tail:
            marks.madvise(mmap.MADV_DONTNEED, head, tail - head)
        else:
            tail = head
        marks[first:head] = bytes(head - first)
        marks[tail:end] = bytes(end - tail)

    def _split(self, page: int) -> bool:
        """Try to; return False if the page is not in memory, so that there is nothing to split."""
        if self._rest > 0:
            self._rest -= 1
            return True
        took = 0.0
        try:
            # Of a larger mapping, the kernel would fill in what lies around the page, too.
            address = linux.map_file(self._fd, linux.PAGE, page)
            try:
                # One that is in the page cache, but whose reading failed or isn't over, would be
                # waited for.
                if linux.pages_in_core(address, linux.PAGE) != b"\1":
                    return False
                linux.populate(address, linux.PAGE)
                begin = perf_counter()
                linux.make_cold(address, linux.PAGE)
                took = perf_counter() - begin
            finally:
                linux.unmap(address, linux.PAGE)
        except OSError:
            pass  # it is left as large as it is
        self._learn(took > SPLITTING)
        return True

    def _learn(self, was_split: bool) -> None:
        self._tries += 1
        self._found += was_split
        if self._tries >= TRIES:
            if self._found >= WORTH_WHILE:
                self._next_rest = FIRST_REST
            else:
                self._rest = self._next_rest
                self._next_rest = min(self._next_rest * 2, LONGEST_REST)
            self._tries = self._found = 0

    def close(self) -> None:
        """Give back the memory of the marks."""
        self.marks.close()


def _slow(length: int) -> float:
    """Return the seconds that a write of so many bytes takes at least in a large folio."""
    return SLOW * -(-length // linux.PAGE)
